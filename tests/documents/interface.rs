//! The D-Bus interface: the manual and docs/dbus.md have what the introspection has, and no more.

use std::collections::{BTreeMap, BTreeSet};

use killswitch::watch::Blocked;

use crate::read;

const INTROSPECTION: &str = "packaging/dbus/org.killswitch1.Manager.xml";
const MANUAL: &str = "man/killswitch-dbus.7";
const GUIDE: &str = "docs/dbus.md";

/// A method, a property or a signal.
struct Member {
    /// "Unlock(in s reason, out b changed)", "Repaired(t repairs)", "s State".
    signature: String,
    /// What polkit is asked; of methods.
    actions: BTreeSet<String>,
    /// Of properties: `EmitsChangedSignal`.
    changes: Option<String>,
}

fn attribute<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(&format!(" {name}=\""))?.1.split('"').next()
}

/// The file is what zbus writes: one element to a line, comments before.
fn members() -> Vec<Member> {
    let text = read(INTROSPECTION);
    let mut members = Vec::new();
    for part in text.split("<!--").skip(1) {
        let (comment, element) = part.split_once("-->").expect("a comment");
        let head = element.lines().map(str::trim).find(|line| !line.is_empty()).expect("a member");
        let name = attribute(head, "name").expect("a name");
        let arguments: Vec<String> = element
            .lines()
            .filter(|line| line.contains("<arg "))
            .map(|line| {
                let of = |name: &str| attribute(line, name);
                let words = [of("direction"), of("type"), of("name")];
                words.into_iter().flatten().collect::<Vec<_>>().join(" ")
            })
            .collect();
        let property = head.starts_with("<property");
        let changes = element.split_once("EmitsChangedSignal").map(|it| it.1);
        let changes = changes.and_then(|it| attribute(it, "value")).unwrap_or("true");
        members.push(Member {
            signature: match property {
                true => format!("{} {name}", attribute(head, "type").expect("a type")),
                false => format!("{name}({})", arguments.join(", ")),
            },
            actions: actions(comment),
            changes: property.then(|| changes.to_owned()),
        });
    }
    let count = ["method", "signal", "property"].map(|it| text.matches(&format!("<{it} ")).count());
    assert_eq!(members.len(), count.iter().sum::<usize>(), "a member without a comment");
    members
}

/// Those of polkit that are named.
fn actions(text: &str) -> BTreeSet<String> {
    let word = |it: &str| it.chars().take_while(char::is_ascii_alphabetic).collect::<String>();
    let all = text.split("org.killswitch1.").skip(1).map(word);
    all.filter(|it| it.starts_with(|first: char| first.is_lowercase())).collect()
}

fn known_actions() -> BTreeSet<String> {
    let source = read("src/dbus/authority.rs");
    let quoted = source.split("\"org.killswitch1.").skip(1);
    quoted.filter_map(|it| it.split('"').next()).map(str::to_owned).collect()
}

fn known_errors() -> BTreeSet<String> {
    let source = read("src/dbus/error.rs");
    let (_, variants) = source.split_once("pub enum Error {").expect("the errors");
    let variants = variants.split("\n}").next().unwrap_or_default();
    let lines = variants.lines().map(str::trim);
    lines.filter_map(|line| line.strip_suffix("(String),")).map(str::to_owned).collect()
}

fn signatures(members: &[Member]) -> BTreeSet<&str> {
    members.iter().map(|member| member.signature.as_str()).collect()
}

/// By their heads: what follows them, up to the next.
fn items<'a>(manual: &'a str, head: &str) -> BTreeMap<&'a str, &'a str> {
    let split = manual.split(head).skip(1);
    split
        .filter_map(|it| it.split_once('\n'))
        .map(|(name, text)| (name.trim_matches('"'), text))
        .collect()
}

#[test]
fn the_manual_has_every_member() {
    let (manual, members) = (read(MANUAL), members());
    let items = items(&manual, "\n.It Ic ");
    assert_eq!(items.keys().copied().collect::<BTreeSet<_>>(), signatures(&members));
    for member in &members {
        let text = items[member.signature.as_str()];
        let text = text.split("\n.El").next().unwrap_or(text);
        assert_eq!(actions(text), member.actions, "killswitch-dbus(7): {}", member.signature);
        let Some(changes) = &member.changes else { continue };
        let title = match changes.as_str() {
            "true" => "Changes are signalled",
            "false" => "Changes are not signalled",
            _ => "Never changed",
        };
        let (_, section) = manual.split_once(&format!("\n.Ss {title}\n")).expect(title);
        let section = section.split("\n.S").next().unwrap_or(section);
        let item = format!(".It Ic \"{}\"\n", member.signature);
        assert!(section.contains(&item), "killswitch-dbus(7), {title}: {}", member.signature);
    }
    let listed = manual.lines().filter_map(|line| line.strip_prefix(".It Ql org.killswitch1."));
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), known_actions());
}

#[test]
fn the_manual_has_every_error() {
    let manual = read(MANUAL);
    let listed: BTreeSet<String> =
        manual.lines().filter_map(|line| line.strip_prefix(".It Er ")).map(str::to_owned).collect();
    assert_eq!(listed, known_errors());
    for line in manual.lines().filter_map(|line| line.strip_prefix(".Er ")) {
        for name in line.split([' ', ',', '.']).filter(|it| !it.is_empty()) {
            assert!(listed.contains(name), "killswitch-dbus(7) names {name}, which is no error");
        }
    }
}

#[test]
fn the_manual_has_every_key_of_a_blocked_packet() {
    let full = Blocked {
        link: Some("eth0".into()),
        source: Some([192, 0, 2, 1].into()),
        source_port: Some(1),
        destination: Some([192, 0, 2, 2].into()),
        port: Some(2),
        protocol: "udp".into(),
        uid: Some(3),
        cgroup: Some("/".into()),
        suppressed: 4,
    };
    let full = serde_json::to_value(full).expect("a document");
    let told =
        full.as_object().expect("an object").iter().map(|(key, value)| {
            (key.clone(), if value.is_number() { "t" } else { "s" }.to_owned())
        });
    let told: BTreeMap<String, String> = told.collect();
    let manual = read(MANUAL);
    let text = items(&manual, "\n.It Ic ")["LeakBlocked(a{sv} packet)"];
    let text = text.split("\n.El").next().unwrap_or(text);
    let listed = items(text, "\n.It Ql ").into_iter().map(|(key, text)| {
        let kind = text.lines().next().and_then(|it| it.strip_prefix(".Pq ")).unwrap_or_default();
        (key.to_owned(), kind.to_owned())
    });
    assert_eq!(listed.collect::<BTreeMap<_, _>>(), told);
}

#[test]
fn the_guide_has_every_member_and_error() {
    let (guide, members) = (read(GUIDE), members());
    let (_, tables) = guide.split_once("\n## All of it\n").expect("the tables");
    let rows: BTreeMap<&str, &str> =
        tables.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).collect();
    let errors: Vec<String> =
        known_errors().iter().map(|name| format!("org.killswitch1.Error.{name}")).collect();
    let mut all = signatures(&members);
    all.extend(errors.iter().map(String::as_str));
    assert_eq!(rows.keys().copied().collect::<BTreeSet<_>>(), all);
    for member in &members {
        let row = rows[member.signature.as_str()];
        assert_eq!(actions(row), member.actions, "{GUIDE}: {}", member.signature);
        let changes = match member.changes.as_deref() {
            None => continue,
            Some("true") => "signalled",
            Some("false") => "not signalled",
            Some(_) => "none",
        };
        assert_eq!(row.trim_matches([' ', '|']), changes, "{GUIDE}: {}", member.signature);
    }
    assert_eq!(actions(&guide), known_actions());
}
