//! The configuration for a report that may be shown to others: only what is known to be harmless.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::schema;
use super::source::Source;
use super::text::hide_keys;

/// What stands for a value that is not shown.
const HIDDEN: &str = "(not shown)";

/// Keys of the TOML file whose values are shown. Neither keys nor paths to them; nor a name, which
/// somebody may take for a place to keep something.
const SHOWN: &[&str] = &[
    "at_boot",
    "egress_guard",
    "kind",
    "interface",
    "addresses",
    "dns",
    "mtu",
    "fwmark",
    "listen_port",
    "backend",
    "connect_at_start",
    "keep_at_stop",
    "endpoints",
    "protocol",
    "allowed_ips",
    "persistent_keepalive",
    "message_shape",
    "dhcp",
    "lan",
    "lan_dns",
    "ntp",
    "inbound",
    "proto",
    "port",
    "from",
    "internal",
    "internal_ports",
    "mode",
];
/// The same of a wg-quick file.
const SHOWN_WG: &[&str] = &[
    "Address",
    "DNS",
    "MTU",
    "Table",
    "FwMark",
    "ListenPort",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];
/// Longer than any address, name of a link or word that is shown.
const LONGEST: usize = 60;
/// Besides letters and digits, what these have: not what an address of the web has before a password
/// ("@", "//") or after a token's name.
const MARKS: &str = ".:/-_*[]";

/// These files ([`super::Config::files`]), each after its name, without comments, keys, paths and
/// whatever else is not known to be harmless.
pub fn redacted(files: &[PathBuf]) -> String {
    let mut shown = String::new();
    for path in files {
        let text = match Source::read(path) {
            Ok(source) => redact(path, &source.text),
            Err(_) => "(cannot be read)\n".into(),
        };
        if !text.is_empty() {
            shown.push_str(&format!("# {}\n{text}", path.display()));
        }
    }
    shown
}

fn redact(path: &Path, text: &str) -> String {
    match path.extension().is_some_and(|it| it == "toml") {
        true => match text.parse::<Table>() {
            Ok(table) => toml::to_string(&shown_table(&table)).unwrap_or_default(),
            Err(_) => "(cannot be read as TOML)\n".into(),
        },
        false => wg_quick(text),
    }
}

/// Unknown names are left out, too: a secret may stand in a name's place.
fn shown_table(table: &Table) -> Table {
    let known = |name: &str| {
        schema::TABLES.iter().any(|(_, keys)| keys.contains(&name))
            || schema::ROOT.contains(&name)
            || schema::INBOUND.contains(&name)
    };
    let entries = table.iter().filter(|(name, _)| known(name)).map(|(name, value)| {
        let shown = match value {
            Value::Table(_) => shown_value(value),
            Value::Array(list) if list.iter().any(Value::is_table) => shown_value(value),
            _ if SHOWN.contains(&name.as_str()) => shown_value(value),
            _ => HIDDEN.into(),
        };
        (name.clone(), shown)
    });
    entries.collect()
}

fn shown_value(value: &Value) -> Value {
    match value {
        Value::Table(table) => Value::Table(shown_table(table)),
        Value::Array(list) => Value::Array(list.iter().map(shown_value).collect()),
        Value::String(text) => shown_text(text).into(),
        other => other.clone(),
    }
}

fn shown_text(text: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || MARKS.contains(it);
    match text.len() <= LONGEST && text.chars().all(is_plain) && !text.contains("//") {
        true => hide_keys(text),
        false => HIDDEN.into(),
    }
}

fn wg_quick(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if matches!(line.to_ascii_lowercase().as_str(), "[interface]" | "[peer]") {
            shown.push_str(&format!("{line}\n"));
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let is_named = |known: &&&str| known.eq_ignore_ascii_case(name.trim());
        let keys = schema::WG_INTERFACE.iter().chain(schema::WG_PEER);
        let Some(name) = keys.clone().find(is_named) else { continue };
        let value = match SHOWN_WG.contains(name) {
            true => value.split(',').map(|it| shown_text(it.trim())).collect::<Vec<_>>().join(", "),
            false => HIDDEN.into(),
        };
        shown.push_str(&format!("{name} = {value}\n"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=";

    /// Whatever the place that a key is put into by mistake.
    #[test]
    fn no_key_is_shown_wherever_it_stands() {
        let mut places: Vec<String> = vec![
            format!("{KEY} = 1"),
            format!("# {KEY}"),
            format!("[tunnel] # {KEY}\nmtu = 1420 # {KEY}"),
            format!("[\"{KEY}\"]\na = 1"),
            format!("[[server]]\nendpoints = [\"{KEY}\", \"\"\"\n{KEY}\"\"\"]"),
            format!("[allow]\ninbound = [{{ proto = \"{KEY}\", \"{KEY}\" = 1 }}]"),
        ];
        for (table, keys) in schema::TABLES {
            for key in *keys {
                places.push(format!("{table}\n{key} = \"{KEY}\""));
                places.push(format!("{table}\n{key} = [\"{KEY}\", {{ port = \"{KEY}\" }}]"));
            }
        }
        for key in schema::WG_INTERFACE.iter().chain(schema::WG_PEER) {
            places.push(format!("[Interface]\n{key} = {KEY}\n[Peer]\n{key}={KEY}, {KEY}"));
        }
        places.push(format!("[Interface]\n{KEY}\nPrivatKey = {KEY}\nAddress = 10.0.0.2 # {KEY}"));
        places.push(KEY.into());
        for text in &places {
            for name in ["a.toml", "a.conf"] {
                let shown = redact(Path::new(name), text);
                assert!(!shown.contains(&KEY[..12]), "{name}: {text}\n{shown}");
            }
        }
    }

    /// Nor what else gives access, in a place whose values are shown.
    #[test]
    fn no_password_is_shown_where_an_address_stands() {
        for text in [
            "https://me:hunter2@vpn.example",
            "me:hunter2@198.51.100.7:51820",
            "//hunter2.example",
            "vpn.example:51820?token=hunter2",
            "198.51.100.7:51820 hunter2",
            "198.51.100.7:51820;hunter2",
        ] {
            let toml =
                format!("[[server]]\nendpoints = [\"{text}\"]\n[tunnel]\ndns = [\"{text}\"]");
            let wg = format!("[Peer]\nEndpoint = {text}\n[Interface]\nDNS = 10.0.0.1, {text}");
            for (name, text) in [("a.toml", toml), ("a.conf", wg)] {
                let shown = redact(Path::new(name), &text);
                assert!(!shown.contains("hunter2") && shown.contains(HIDDEN), "{text}\n{shown}");
            }
        }
    }

    #[test]
    fn what_is_harmless_is_shown() {
        let toml = format!(
            "[tunnel]\ninterface = \"wg0\"\nprivate_key_file = \"/etc/a.key\"\n\
             [[server]]\nendpoints = [\"198.51.100.7:51820\"]\npublic_key = \"{KEY}\"\n\
             [allow]\ninbound = [{{ proto = \"tcp\", port = 22, from = [\"192.168.1.0/24\"] }}]\n"
        );
        let shown = redact(Path::new("a.toml"), &toml);
        for words in ["interface = \"wg0\"", "198.51.100.7:51820", "192.168.1.0/24", "port = 22"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert!(shown.contains("private_key_file = \"(not shown)\""), "{shown}");
        let wg = format!("[Interface]\nPrivateKey = {KEY}\nAddress = 10.0.0.2/32, fd00::2/128\n");
        let shown = redact(Path::new("wg0.conf"), &wg);
        assert_eq!(
            shown,
            "[Interface]\nPrivateKey = (not shown)\nAddress = 10.0.0.2/32, fd00::2/128\n"
        );
    }
}
