//! Packets in words and as lines, and what is said of each; that every remedy works, and that where
//! none is told none would.
//!
//! Needs to be root, or mapped to root in a user namespace: configurations of others are refused.

mod lines;
mod remedies;
mod table;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Parser;
use killswitch::cli::args::{Arguments, Command};
use killswitch::config::{self, Config};
use killswitch::explain::{Answer, Here, Words, decide_at, line};
use killswitch::netlink::Link;
use killswitch::policy::Policy;

/// A configuration in a folder of its own, as the program reads it.
struct Site {
    folder: tempfile::TempDir,
    config: Option<Config>,
    policy: Policy,
}

impl Site {
    /// One of the folder's files; "none": there is none.
    fn named(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/explain/{name}.toml"));
        Site::of(&std::fs::read_to_string(path).unwrap_or_default())
    }

    fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("a file");
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, private).expect("its mode");
            path
        };
        write("private.key", "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=\n");
        let path = write("killswitch.toml", text);
        let config = match text {
            "" => None,
            _ => Some(config::load(&path).unwrap_or_else(|error| panic!("{error}\n{text}"))),
        };
        let policy = config.as_ref().map_or_else(Policy::strictest, Policy::from_config);
        Site { folder, config, policy }
    }

    fn answer(&self, words: &Words) -> Result<Answer, String> {
        decide_at(&here(), words, &self.policy, self.config.as_ref())
    }

    /// Without the folder's name, which is another one each time.
    fn plain(&self, text: &str) -> String {
        let folder = format!("{}/", self.folder.path().display());
        text.replace(&folder, "")
    }
}

/// The machine that is asked about.
fn here() -> Here {
    Here { links: links(), addresses: vec!["192.168.1.9".parse().expect("an address")] }
}

fn links() -> Vec<Link> {
    let link = |index: u32, name: &str, kind: Option<&str>| Link {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        loopback: name == "lo",
        ethernet: name != "lo",
        up: true,
        running: true,
        mtu: 1500,
        ..Link::default()
    };
    vec![
        link(1, "lo", None),
        link(2, "nic0", None),
        link(3, "nic1", None),
        link(4, "wg0", Some("wireguard")),
        link(5, "br-inside", Some("bridge")),
        link(6, "odd0", Some("bridge")),
        link(7, "vport", Some("veth")),
    ]
}

/// Words as they are typed, and after " :: " the line.
fn packet(text: &str) -> Result<line::Read, String> {
    let (typed, line) = match text.split_once(":: ") {
        Some((typed, line)) => (typed, Some(line)),
        None => (text, None),
    };
    let typed = ["killswitch", "explain"].into_iter().chain(typed.split_whitespace());
    let arguments = Arguments::try_parse_from(typed).map_err(|error| error.to_string())?;
    let Command::Explain(options) = arguments.command else { panic!("{text}") };
    match line {
        Some(line) => line::read_besides(line, &options.words),
        None => Ok(line::Read { words: options.words, assumed: Vec::new() }),
    }
}
