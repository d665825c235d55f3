//! One folder per case: `killswitch.toml`, the files it needs, and `expected.nft`, the text of both
//! tables. `UPDATE_EXPECTED=1` rewrites that.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use killswitch::config;
use killswitch::lab::harness::{Failed, Outcome};
use killswitch::lab::{Context, Host};
use killswitch::netfilter;
use killswitch::netlink::{Family, Socket};
use killswitch::policy::Policy;
use killswitch::ruleset::{LinkRef, Table, compile, guard, text};

use crate::listing;

/// The links of the guard: the first has index 2, after loopback.
const LINKS: [&str; 2] = ["eth0", "wlan0"];

struct Case {
    directory: PathBuf,
    policy: Policy,
}

impl Case {
    fn guard(&self) -> Option<Table> {
        let links: Vec<_> =
            (2..).zip(LINKS).map(|(index, name)| LinkRef { index, name: name.into() }).collect();
        self.policy.egress_guard.then(|| guard(&self.policy, Some(&links)))
    }

    fn text(&self) -> String {
        let tables = std::iter::once(compile(&self.policy)).chain(self.guard());
        tables.map(|table| text::script(&table)).collect::<Vec<_>>().join("\n")
    }
}

pub fn text_is_as_pinned() -> Outcome {
    let mut wrong = Vec::new();
    for case in cases()? {
        let expected = case.directory.join("expected.nft");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, case.text())?;
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        if wanted != case.text() {
            wrong.push(format!("{}\n--- actual\n{}", expected.display(), case.text()));
        }
    }
    all_right(&wrong)
}

pub fn text_and_messages_give_one_table() -> Outcome {
    let mut wrong = Vec::new();
    for case in cases()? {
        wrong.extend(difference(&case, &compile(&case.policy))?);
    }
    all_right(&wrong)
}

pub fn text_and_messages_give_one_guard() -> Outcome {
    let mut wrong = Vec::new();
    for case in cases()? {
        if let Some(guard) = case.guard() {
            wrong.extend(difference(&case, &guard)?);
        }
    }
    all_right(&wrong)
}

fn all_right(wrong: &[String]) -> Outcome {
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("{} cases differ:\n\n{}", wrong.len(), wrong.join("\n\n")).into()),
    }
}

/// Two machines, one for each way; what differs, if anything.
fn difference(case: &Case, table: &Table) -> Result<Option<String>, Failed> {
    let by_text = machine()?;
    by_text.feed("nft", &["-f", "-"], &text::script(table)).during(case.directory.display())?;
    let by_message = machine()?;
    let socket = by_message.run(|| Socket::open(Family::Netfilter))??;
    netfilter::apply(&socket, table)?;
    let [text, message] =
        [listing::of(&by_text, table.family)?, listing::of(&by_message, table.family)?];
    if text.len() < table.chains.len() {
        return Err(format!("nft lists only {} objects", text.len()).into());
    }
    let lone = |one: &[String], other: &[String], sign: &str| -> Vec<String> {
        let lone = one.iter().filter(|line| !other.contains(line));
        lone.map(|line| format!("{sign} {line}")).collect()
    };
    Ok((text != message).then(|| {
        let lines = [lone(&text, &message, "- text"), lone(&message, &text, "+ message")].concat();
        format!("{}\n{}", case.directory.display(), lines.join("\n"))
    }))
}

fn machine() -> Result<Host, Failed> {
    let host = Host::new("golden")?;
    for link in LINKS {
        host.ip(&format!("link add {link} type veth peer name {link}-peer\n"))?;
    }
    Ok(host)
}

fn cases() -> Result<Vec<Case>, Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut directories: Vec<PathBuf> =
        fs::read_dir(&root)?.map(|it| Ok(it?.path())).collect::<std::io::Result<_>>()?;
    directories.retain(|path| path.is_dir());
    directories.sort();
    if directories.len() < 8 {
        return Err(format!("only {} cases in {}", directories.len(), root.display()).into());
    }
    directories.into_iter().map(case).collect()
}

fn case(directory: PathBuf) -> Result<Case, Failed> {
    // Secrets must be private, which git does not keep.
    let private = tempfile::tempdir()?;
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        let target = private.path().join(entry.file_name());
        fs::copy(entry.path(), &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600))?;
    }
    let loaded = config::load(&private.path().join("killswitch.toml"));
    let is_unreadable = directory.ends_with("10-unreadable");
    let policy = match loaded {
        Ok(config) if !is_unreadable => Policy::from_config(&config),
        Err(_) if is_unreadable => Policy::strictest(),
        Ok(_) => return Err(format!("{} can be read", directory.display()).into()),
        Err(error) => return Err(format!("{}: {error}", directory.display()).into()),
    };
    Ok(Case { directory, policy })
}
