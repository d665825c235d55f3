//! The manuals say what the program does, as a reader sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use clap::{Command, CommandFactory, Parser};
use killswitch::audit::{KINDS, Severity};
use killswitch::cli::args::{
    AUDIT_EXIT_STATUS, Arguments, EXIT_STATUS, LEAKTEST_EXIT_STATUS, PLAN_EXIT_STATUS,
    STATUS_EXIT_STATUS, VERIFY_EXIT_STATUS,
};
use killswitch::config::{self, LinkPattern};
use killswitch::daemon::calls::{Event, Report};
use killswitch::lock::{Exception, Layers, State, Status, Tunnel};
use killswitch::netfilter::Counted;
use killswitch::watch::Blocked;
use serde_json::Value;

use crate::{read, root};

const MANUALS: [&str; 3] = ["man/killswitch.8", "man/killswitch.toml.5", "man/killswitch-dbus.7"];

/// What a program that reads manuals said; it must be installed.
fn run(program: &str, arguments: &[&str]) -> (String, String) {
    let output = std::process::Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env("MANROFFSEQ", "")
        .env("MANWIDTH", "80")
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; packaging/build-deps installs it"));
    let [out, err] =
        [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    (out, err)
}

/// A manual as it is read, without emphasis and quotation marks, its words one blank apart.
fn shown(manual: &str) -> String {
    let (text, _) = run("mandoc", &["-T", "utf8", "-O", "width=1000", manual]);
    assert!(!text.is_empty(), "{manual}");
    // A bold letter is written twice, an emphasised one over an underscore.
    let mut plain = String::new();
    for letter in text.chars() {
        match letter {
            '\u{8}' => drop(plain.pop()),
            letter => plain.push(letter),
        }
    }
    words(&plain)
}

fn words(text: &str) -> String {
    let plain = text.replace(['‘', '’', '“', '”', '"', '`', '\''], "");
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A section, up to the next one.
fn section<'a>(manual: &'a str, name: &str) -> &'a str {
    let (_, after) = manual.split_once(&format!("\n.Sh {name}\n")).expect(name);
    after.split("\n.Sh ").next().unwrap_or(after)
}

#[test]
fn manuals_are_sound() {
    for manual in MANUALS {
        // What is installed on this machine is not the manual's fault.
        let (complaints, _) = run("mandoc", &["-T", "lint", manual]);
        let complaints: Vec<&str> =
            complaints.lines().filter(|it| !it.contains("referenced manual not found")).collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
        let (_, complaints) =
            run("man", &["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", manual]);
        assert_eq!(complaints, "", "{manual}");
    }
}

#[test]
fn the_manual_has_every_command_and_option_in_the_words_of_help() {
    let manual = read(MANUALS[0]);
    let text = shown(MANUALS[0]);
    let command = Arguments::command();
    for argument in command.get_arguments().filter(|it| it.get_long().is_some()) {
        let long = argument.get_long().unwrap();
        assert!(manual.contains(&format!(".It Fl -{long}")), "killswitch(8) lacks --{long}");
    }
    for (name, subcommand) in commands(&command) {
        let (_, after) = manual
            .split_once(&format!("\n.It Ic {name}"))
            .unwrap_or_else(|| panic!("killswitch(8) lacks {name}"));
        let synopsis = after.lines().next().unwrap_or_default();
        for argument in subcommand.get_arguments() {
            let Some(long) = argument.get_long() else {
                let value = argument.get_id().as_str().to_uppercase();
                assert!(synopsis.contains(&value), "{name}: no {value} in {synopsis}");
                continue;
            };
            let value = argument.get_action().takes_values().then(|| {
                let names = argument.get_value_names().expect("a name of the value");
                format!(" {}", names[0])
            });
            let help = argument.get_help().expect("help").to_string();
            let wanted = words(&format!("--{long}{} {help}", value.unwrap_or_default()));
            assert!(text.contains(&wanted), "killswitch(8), {name}: {wanted:?} is missing");
        }
    }
}

#[test]
fn options_of_all_commands_are_of_all() {
    let manual = read(MANUALS[0]);
    let (_, list) = manual.split_once("\nOptions of all commands:\n").expect("the options");
    let list = list.split("\n.El\n").next().unwrap_or(list);
    let options: Vec<&str> = list.lines().filter_map(|it| it.strip_prefix(".It Fl -")).collect();
    assert!(options.len() >= 3, "{options:?}");
    for option in options {
        let typed = format!("killswitch lock --{}", option.replace(" Ar ", " "));
        let words: Vec<_> = typed.split(' ').map(Into::into).collect();
        // Help comes as an error, which is none.
        let refusal = Arguments::read(&words).err().filter(|error| error.use_stderr());
        assert!(refusal.is_none(), "{typed}: {refusal:?}");
    }
}

/// Every command that help shows, with its name as it is typed; those that only have others below
/// them are left out.
fn commands(above: &Command) -> Vec<(String, &Command)> {
    let mut all = Vec::new();
    for command in above.get_subcommands().filter(|it| !it.is_hide_set()) {
        let name = command.get_name();
        match command.has_subcommands() {
            true => all.extend(
                commands(command).into_iter().map(|(below, it)| (format!("{name} {below}"), it)),
            ),
            false => all.push((name.to_owned(), command)),
        }
    }
    all
}

#[test]
fn the_manual_has_every_exit_status() {
    let manual = read(MANUALS[0]);
    let text = section(&manual, "EXIT STATUS");
    let listed: Vec<(u8, &str)> = text
        .split("\n.It ")
        .skip(1)
        .map(|item| {
            let mut lines = item.lines();
            let number = lines.next().and_then(|it| it.parse().ok()).expect("an exit status");
            (number, lines.next().unwrap_or_default())
        })
        .collect();
    let known = [
        &EXIT_STATUS[..],
        &STATUS_EXIT_STATUS,
        &VERIFY_EXIT_STATUS,
        &PLAN_EXIT_STATUS,
        &AUDIT_EXIT_STATUS,
        &LEAKTEST_EXIT_STATUS,
    ]
    .concat();
    assert_eq!(listed, known);
    let mut command = Arguments::command();
    let help = words(&command.render_long_help().to_string());
    for (code, meaning) in EXIT_STATUS {
        assert!(help.contains(&format!("{code} {meaning}")), "killswitch --help: {code}");
    }
    let own = [
        ("status", &STATUS_EXIT_STATUS[..]),
        ("plan", &PLAN_EXIT_STATUS),
        ("audit", &AUDIT_EXIT_STATUS),
        ("evidence verify", &VERIFY_EXIT_STATUS),
        ("leaktest", &LEAKTEST_EXIT_STATUS),
    ];
    for (name, statuses) in own {
        let below = name.split(' ').try_fold(&mut command, |it, name| it.find_subcommand_mut(name));
        let help = below.expect(name).render_long_help().to_string();
        for (code, meaning) in statuses {
            let help = words(&help.replace(':', ""));
            assert!(
                help.contains(&format!("{code} {meaning}")),
                "killswitch {name} --help: {code}"
            );
        }
    }
}

/// With everything in it that there can be.
fn full_status() -> Value {
    let reasons = [("blocked".to_owned(), Counted { packets: 1, bytes: 1 })];
    let status = Status {
        state: State::Connected,
        locked: true,
        intact: true,
        degraded: vec!["a reason".into()],
        tunnel: Some(Tunnel {
            interface: "wg0".into(),
            up: true,
            server: Some("a".into()),
            endpoint: Some("198.51.100.7:51820".into()),
            last_handshake_age_s: Some(1),
            rx_bytes: 1,
            tx_bytes: 1,
            routed: true,
        }),
        layers: Layers { table: true, egress: vec!["eth0".into()], routes: true, owned: true },
        dropped: [("output".to_owned(), reasons.into())].into(),
        daemon: true,
        exceptions: vec![Exception { id: 1, kind: "lan".into(), what: "a".into(), left_s: 1 }],
        routing_guard: true,
    };
    serde_json::to_value(status).expect("a document")
}

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        found.insert(key.clone());
        keys(value, found);
    }
    value.as_array().into_iter().flatten().for_each(|item| keys(item, found));
}

#[test]
fn the_manual_has_every_key_of_status() {
    let manual = read(MANUALS[0]);
    let (_, text) = section(&manual, "JSON").split_once(".Ss status\n").expect("status");
    let text = text.split("\n.Ss ").next().unwrap_or(text);
    let listed: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix(".It Cm ")).map(str::to_owned).collect();
    let mut printed = BTreeSet::new();
    keys(&full_status(), &mut printed);
    // Names of a chain and of a reason.
    printed.retain(|key| !["output", "blocked"].contains(&key.as_str()));
    assert_eq!(listed, printed);
    for state in [State::Connected, State::Connecting, State::Blocked, State::Open, State::Damaged]
    {
        let name = serde_json::to_value(state).unwrap();
        let name = name.as_str().unwrap();
        assert!(text.contains(&format!(".Ql {name}")), "killswitch(8) lacks the state {name}");
    }
}

#[test]
fn the_manual_has_every_finding() {
    let manual = read(MANUALS[0]);
    let text = section(&manual, "AUDIT");
    for (head, severity) in [("Critical", Severity::Critical), ("Warnings", Severity::Warning)] {
        let (_, part) = text.split_once(&format!(".Ss {head}\n")).expect(head);
        let part = part.split("\n.El").next().unwrap_or(part);
        let listed: BTreeMap<&str, String> = part
            .split(".It Cm ")
            .skip(1)
            .filter_map(|item| item.split_once('\n'))
            .map(|(id, why)| (id, words(why)))
            .collect();
        let kinds = KINDS.iter().filter(|kind| kind.severity == severity);
        let known: BTreeMap<&str, String> =
            kinds.map(|kind| (kind.id, words(&format!("{}.", kind.why)))).collect();
        assert_eq!(listed, known);
    }
    let threats: Vec<u32> = crate::threat_rows().iter().map(|(number, _)| *number).collect();
    for kind in KINDS {
        assert!(kind.threats.iter().all(|threat| threats.contains(threat)), "{kind:?}");
    }
}

/// Every key that the schema knows, by its table.
fn schema() -> BTreeMap<String, BTreeSet<String>> {
    let source = read("src/config/schema.rs");
    let mut tables = BTreeMap::new();
    for table in ["lock", "tunnel", "server", "allow", "forward"] {
        let (_, after) =
            source.split_once(&format!("const {}: &[&str]", table.to_uppercase())).expect(table);
        let list = after.split(';').next().unwrap_or(after);
        let keys = list.split('"').skip(1).step_by(2);
        tables.insert(table.to_owned(), keys.map(str::to_owned).collect());
    }
    tables
}

/// What stands for a key that a file does not have, as a file would have it; of those that have a
/// value then.
fn defaults() -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect(name);
        path
    };
    write("private.key", "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=");
    let minimal = "[tunnel]\ninterface = \"wg0\"\nprivate_key_file = \"private.key\"\n\
                   addresses = [\"10.64.0.2/32\"]\n[[server]]\nname = \"a\"\n\
                   endpoints = [\"198.51.100.7:51820\"]\n\
                   public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n";
    let config = config::load(&write("killswitch.toml", minimal)).expect("a configuration");
    let (tunnel, allow) = (&config.tunnel, &config.allow);
    let word = |value: &dyn std::fmt::Debug| format!("\"{}\"", format!("{value:?}").to_lowercase());
    let links = |patterns: &[LinkPattern]| {
        let names = patterns.iter().map(|pattern| match pattern {
            LinkPattern::Exact(name) => format!("\"{name}\""),
            LinkPattern::Prefix(start) => format!("\"{start}*\""),
        });
        format!("[{}]", names.collect::<Vec<_>>().join(", "))
    };
    let empty = |is_empty: bool| {
        assert!(is_empty);
        "[]".to_owned()
    };
    [
        ("lock.at_boot", config.lock.at_boot.to_string()),
        ("lock.egress_guard", config.lock.egress_guard.to_string()),
        ("tunnel.kind", word(&tunnel.kind)),
        ("tunnel.fwmark", format!("{:#x}", tunnel.mark)),
        ("tunnel.backend", word(&tunnel.backend)),
        ("tunnel.connect_at_start", tunnel.connect_at_start.to_string()),
        ("tunnel.keep_at_stop", tunnel.keep_at_stop.to_string()),
        ("server.protocol", word(&config.servers[0].protocol)),
        ("server.message_shape", word(&config.servers[0].message_shape)),
        ("allow.dhcp", allow.dhcp.to_string()),
        ("allow.lan", empty(allow.lan.is_empty())),
        ("allow.lan_dns", empty(allow.lan_dns.is_empty())),
        ("allow.ntp", empty(allow.ntp.is_empty())),
        ("allow.inbound", empty(allow.inbound.is_empty())),
        ("allow.internal", links(&allow.internal)),
        ("allow.internal_ports", links(&allow.internal_ports)),
        ("forward.mode", word(&config.forward.mode)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[test]
fn the_manual_has_every_key_with_its_default() {
    let manual = read(MANUALS[1]);
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut said = BTreeMap::new();
    let mut table = String::new();
    for line in section(&manual, "DESCRIPTION").lines() {
        if let Some(name) = line.strip_prefix(".Ss ") {
            table = name.trim_matches(['[', ']', '\\', '&']).to_owned();
        }
        if let Some(key) = line.strip_prefix(".It Cm ") {
            let (key, default) = match key.split_once(" No = Ar ") {
                Some((key, default)) => (key, Some(default)),
                None => (key, None),
            };
            listed.entry(table.clone()).or_default().insert(key.to_owned());
            if let Some(default) = default {
                let value = default.replace("\\(dq", "\"").replace("\\&", "");
                said.insert(format!("{table}.{key}"), value);
            }
        }
    }
    assert_eq!(listed, schema());
    assert_eq!(said, defaults());
}

/// Every line of help and of the manual that begins with the program's name, or has it after a
/// colon: up to what a shell makes of it, or what explains it.
fn examples() -> Vec<String> {
    let command = Arguments::command();
    let below = commands(&command).into_iter().map(|(_, it)| it);
    let mut texts: Vec<String> = below
        .chain(command.get_subcommands())
        .chain([&command])
        .filter_map(|it| it.get_after_help().map(ToString::to_string))
        .collect();
    texts.push(read(MANUALS[0]).replace(".Dl ", ""));
    let mut found = Vec::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        let line = line.trim_start_matches([' ', '.', '1', '2', '3', '4', '5', '6']);
        let after_colon = line.rsplit_once(": ").map_or("", |(_, after)| after.trim_start());
        for part in [line, after_colon] {
            if part.starts_with("killswitch ") {
                let end = [" | ", " || ", "  "].iter().filter_map(|it| part.find(it)).min();
                found.push(part[..end.unwrap_or(part.len())].trim_end().to_owned());
            }
        }
    }
    found
}

#[test]
fn examples_can_be_typed() {
    let examples = examples();
    assert!(examples.len() > 20, "{examples:#?}");
    for example in examples {
        // One that names a placeholder is no example.
        if example.split(' ').any(|word| word == "COMMAND") {
            continue;
        }
        if let Err(error) = Arguments::try_parse_from(example.split(' ')) {
            panic!("{example}: {error}");
        }
    }
}

/// In the list of the other commands.
#[test]
fn the_manual_has_every_key_of_events() {
    let manual = read(MANUALS[0]);
    let (_, text) = manual.split_once("\n.It Ic connect , disconnect , reconnect\n").expect("it");
    let text = text.split("\n.Sh ").next().unwrap_or(text);
    let blocked = Blocked {
        link: None,
        source: None,
        source_port: None,
        destination: None,
        port: None,
        protocol: String::new(),
        uid: None,
        cgroup: None,
        suppressed: 0,
    };
    let all = [
        Event::State(Report::default()),
        Event::Tampered { layer: String::new(), pid: None, process: None },
        Event::Blocked(blocked),
        Event::Repaired { repairs: 0 },
        Event::Failed { what: String::new(), why: String::new() },
        Event::Reloaded,
        Event::Missed { events: 0 },
    ];
    for event in all {
        let document = serde_json::to_value(&event).expect("a document");
        let name = document["event"].as_str().expect("its name").to_owned();
        for key in document.as_object().expect("an object").keys().chain([&name]) {
            assert!(text.contains(&format!(".Ql {key}")), "killswitch(8), monitor: no {key}");
        }
    }
}
