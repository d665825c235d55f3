//! Whatever stands in the files: an answer, never a panic, and never a key in the answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use killswitch::config::{self, check};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

const PRIVATE: &str = "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=";
const PRESHARED: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

const TOML: &str = r#"
[lock]
at_boot = true
[tunnel]
interface = "wg7"
config = "wg0.conf"
backend = "kernel"
[[server]]
name = "second"
endpoints = ["203.0.113.9:443", "[2001:db8::9]:51820"]
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
preshared_key_file = "psk"
persistent_keepalive = 25
[allow]
lan = ["192.168.1.0/24"]
inbound = [{ proto = "tcp", port = 22, from = ["192.168.1.0/24"] }]
internal = ["br-*"]
[forward]
mode = "tunnel"
"#;

fn wg_quick() -> String {
    format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.64.0.2/32, fd00::2/128\n\
         DNS = 10.64.0.1, example.org\nMTU = 1420\nFwMark = 0x51\nPostUp = true %i\n\
         [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
         PresharedKey={PRESHARED}\nAllowedIPs = 0.0.0.0/0,::/0\nEndpoint = 198.51.100.7:51820\n"
    )
}

/// What is said of these files; "valid" and the warnings if nothing is wrong.
fn answer(toml: &[u8], wg_quick: &[u8], preshared: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("killswitch.toml", toml);
    write("wg0.conf", wg_quick);
    write("psk", preshared);
    load(&directory.path().join("killswitch.toml"))
}

fn load(path: &Path) -> String {
    match config::load(path) {
        Ok(config) => format!("valid {:?} {config:?}", check::warnings(&config)),
        Err(error) => format!("{error}\n{error:?}"),
    }
}

/// No 16 characters of a key.
fn holds_no_key(text: &str) -> bool {
    [PRIVATE, PRESHARED]
        .iter()
        .all(|key| (0..=key.len() - 16).all(|start| !text.contains(&key[start..start + 16])))
}

#[derive(Debug, Clone)]
enum Change {
    Replace(Index, u8),
    Insert(Index, String),
    Remove(Index, usize),
    Truncate(Index),
    SwapLines(Index, Index),
    JoinLine(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let word = prop_oneof![
        "[\\PC\n\"'=#,.:\\[\\]{}0-9]{1,4}",
        Just("\u{0}".to_owned()),
        Just("\u{1b}[31m".to_owned()),
        Just("\u{e9}\u{202e}".to_owned()),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (any::<Index>(), word).prop_map(|(at, word)| Change::Insert(at, word)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        any::<Index>().prop_map(Change::Truncate),
        (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::SwapLines(a, b)),
        any::<Index>().prop_map(Change::JoinLine),
    ]
}

fn apply(text: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        let length = bytes.len().max(1);
        match change {
            Change::Replace(at, byte) => {
                let at = at.index(length);
                bytes.splice(at..(at + 1).min(bytes.len()), [*byte]);
            }
            Change::Insert(at, word) => {
                let at = at.index(length).min(bytes.len());
                bytes.splice(at..at, word.bytes());
            }
            Change::Remove(at, count) => {
                let at = at.index(length).min(bytes.len());
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Change::Truncate(at) => bytes.truncate(at.index(length)),
            Change::SwapLines(a, b) => {
                let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
                bytes = lines.join(&b'\n');
            }
            Change::JoinLine(at) => {
                let newlines: Vec<usize> =
                    (0..bytes.len()).filter(|&index| bytes[index] == b'\n').collect();
                if !newlines.is_empty() {
                    bytes.remove(newlines[at.index(newlines.len())]);
                }
            }
        }
    }
    bytes
}

#[test]
fn the_unchanged_files_are_valid() {
    let said = answer(TOML.as_bytes(), wg_quick().as_bytes(), PRESHARED.as_bytes());
    assert!(said.starts_with("valid") && holds_no_key(&said), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, rng_seed: RngSeed::Fixed(0x6b73), failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes(toml in vec(any::<u8>(), 0..200), wg in vec(any::<u8>(), 0..200)) {
        prop_assert!(!answer(&toml, b"", b"").trim().is_empty());
        prop_assert!(!answer(TOML.as_bytes(), &wg, &toml).trim().is_empty());
    }

    #[test]
    fn arbitrary_text(toml in "[a-z_\\[\\]=\"0-9.:/\n #{},%é-]{0,120}") {
        prop_assert!(!answer(toml.as_bytes(), toml.as_bytes(), b"").trim().is_empty());
        prop_assert!(!answer(TOML.as_bytes(), toml.as_bytes(), b"").trim().is_empty());
    }

    #[test]
    fn changed_files(
        toml in vec(change(), 0..3),
        wg in vec(change(), 0..3),
        preshared in vec(change(), 0..2),
    ) {
        let said = answer(
            &apply(TOML, &toml),
            &apply(&wg_quick(), &wg),
            &apply(PRESHARED, &preshared),
        );
        prop_assert!(said.len() > 10);
        prop_assert!(holds_no_key(&said), "{}", said);
    }

    #[test]
    fn keys_in_wrong_places(changes in vec(change(), 0..2), line in any::<Index>(), form in 0..6) {
        let misplaced = match form {
            0 => format!("private_key = \"{PRIVATE}\""),
            1 => format!("private_key_file = \"{PRIVATE}\""),
            2 => format!("public_key = \"{PRIVATE}\""),
            3 => format!("\"{PRIVATE}\" = 1"),
            4 => PRIVATE.to_owned(),
            _ => format!("interface = \"{PRIVATE}\""),
        };
        let mut lines: Vec<&str> = TOML.lines().collect();
        lines.insert(line.index(lines.len()), &misplaced);
        let toml = apply(&lines.join("\n"), &changes);
        let said = answer(&toml, wg_quick().as_bytes(), PRESHARED.as_bytes());
        // A private key given as a public one is a valid public key, and those are printed.
        prop_assert!(holds_no_key(&said) || said.starts_with("valid"), "{}", said);
    }
}
