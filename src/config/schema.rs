//! Every name that a file may use.

use super::text;

pub(super) const ROOT: &[&str] = &["lock", "tunnel", "server", "allow", "forward"];
pub(super) const LOCK: &[&str] = &["at_boot", "egress_guard"];
pub(super) const TUNNEL: &[&str] = &[
    "kind",
    "interface",
    "config",
    "private_key_file",
    "addresses",
    "dns",
    "mtu",
    "fwmark",
    "listen_port",
    "backend",
    "connect_at_start",
    "keep_at_stop",
];
pub(super) const SERVER: &[&str] = &[
    "name",
    "endpoints",
    "protocol",
    "public_key",
    "preshared_key_file",
    "allowed_ips",
    "persistent_keepalive",
    "message_shape",
];
pub(super) const ALLOW: &[&str] =
    &["dhcp", "lan", "lan_dns", "ntp", "inbound", "internal", "internal_ports"];
pub(super) const INBOUND: &[&str] = &["proto", "port", "from"];
pub(super) const FORWARD: &[&str] = &["mode"];

/// The tables of the file as they are written, with their keys.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    ("[lock]", LOCK),
    ("[tunnel]", TUNNEL),
    ("[[server]]", SERVER),
    ("[allow]", ALLOW),
    ("[forward]", FORWARD),
];

/// Keys of `[Interface]`: those of wg(8) and wg-quick(8).
pub(super) const WG_INTERFACE: &[&str] = &[
    "PrivateKey",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "FwMark",
    "ListenPort",
    "SaveConfig",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
];
/// Keys of `[Peer]`.
pub(super) const WG_PEER: &[&str] =
    &["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];

const SECRETS: &[&str] = &["PrivateKey", "PresharedKey"];

/// Whether the value of a key of this name may be a secret, misspelt names included.
pub(super) fn may_name_a_secret(name: &str) -> bool {
    let name = name.trim_matches('"').rsplit('.').next().unwrap_or(name);
    let is = |known: &&str| known.eq_ignore_ascii_case(name);
    if SECRETS.iter().any(is) {
        return true;
    }
    let tables = TABLES.iter().flat_map(|(_, keys)| keys.iter());
    if tables.chain(WG_INTERFACE).chain(WG_PEER).chain(INBOUND).any(is) {
        return false;
    }
    let lower = name.to_ascii_lowercase();
    ["key", "psk", "secret", "pass"].iter().any(|word| lower.contains(word))
        || text::nearest(name, SECRETS).is_some()
}
