//! The configuration: `/etc/killswitch.toml`, its drop-ins, and the wg-quick files it names.
//!
//! [`load`] reads strictly: an unknown key, a loose file mode or a value that cannot be meant is an
//! [`Error`] that says what, where, and what to do next. What is legal but unwise is a warning of
//! [`check`].
//!
//! The way of the data:
//!
//! ```text
//! source (safe files) -> tree (TOML, merged) -> draft (values) -> validate -> Config
//!                   \-> wgquick ---------------/
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

pub mod check;
mod draft;
mod error;
mod exception;
mod fields;
mod file;
mod redact;
mod schema;
mod secret;
mod source;
mod text;
mod tree;
mod validate;
mod value;
mod wgquick;

pub use error::{Error, Excerpt, Location, Problem};
pub use exception::{EXCEPTION_KINDS, Exception};
pub use redact::redacted;
pub use secret::{Key, KeyError, PublicKey};

/// Where the configuration is read from unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/killswitch.toml";

/// The firewall mark of the tunnel's outer packets unless configured: "ks" in ASCII.
pub const DEFAULT_MARK: u32 = 0x6b73;

/// The shortest configuration that works.
pub const MINIMAL: &str = "[tunnel]\nconfig = \"/etc/wireguard/wg0.conf\"";

const SMALLEST_MTU: u16 = 576;
/// RFC 8200, section 5.
const SMALLEST_MTU_V6: u16 = 1280;
const MTU_RANGE: std::ops::RangeInclusive<i64> = SMALLEST_MTU as i64..=u16::MAX as i64;

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Every file it was read from, in order: for messages and for `audit`.
    pub files: Vec<PathBuf>,
    /// `[lock]`
    pub lock: Lock,
    /// `[tunnel]`
    pub tunnel: Tunnel,
    /// `[[server]]`, tried in order.
    pub servers: Vec<Server>,
    /// `[allow]`
    pub allow: Allow,
    /// `[forward]`
    pub forward: Forward,
    /// What was read but does not take effect (e.g. `PostUp` lines of a wg-quick file), each with
    /// its place.
    pub notices: Vec<Notice>,
    /// Where the values stand.
    pub places: Places,
}

impl Config {
    /// The place of the server of this name in [`Config::servers`].
    ///
    /// # Errors
    /// There is none: which one was probably meant, or else which there are.
    pub fn server_named(&self, name: &str) -> Result<usize, String> {
        let names: Vec<&str> = self.servers.iter().map(|server| server.name.as_str()).collect();
        names.iter().position(|it| *it == name).ok_or_else(|| {
            let wrong = format!("there is no server {}", text::quote(name));
            match text::nearest(name, &names) {
                Some(meant) => format!("{wrong}\nhelp: did you mean \"{meant}\"?"),
                None => format!("{wrong}\nhelp: the configuration has {}", names.join(", ")),
            }
        })
    }
}

/// Where the values of a [`Config`] stand: for messages.
#[derive(Debug, Clone, Default)]
pub struct Places {
    main: Location,
    known: BTreeMap<String, Location>,
}

impl Places {
    /// The place of a key such as `allow.lan[1]`; of the table or array around it if the key is not
    /// written, or else the file as a whole.
    pub fn of(&self, key: &str) -> Location {
        let mut key = key;
        while !key.is_empty() {
            if let Some(location) = self.known.get(key) {
                return location.clone();
            }
            key = &key[..key.rfind(['.', '[']).unwrap_or(0)];
        }
        self.main.clone()
    }

    /// The place of exactly this key; none where it is not written.
    pub fn written(&self, key: &str) -> Option<Location> {
        self.known.get(key).cloned()
    }
}

/// Something in a file that a person should know of, though nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Where it stands.
    pub location: Location,
    /// What it is and what follows from it.
    pub message: String,
}

/// `[lock]`: when and how the lock is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Lock before the network comes up.
    pub at_boot: bool,
    /// Use `netdev` egress chains where the kernel has them.
    pub egress_guard: bool,
}

/// `[tunnel]`: the link that all traffic must take.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Who brings the interface up.
    pub kind: TunnelKind,
    /// Its name: 1 to 15 bytes of letters, digits, `.`, `_`, `-`.
    pub interface: String,
    /// Firewall mark of the outer packets; not zero.
    pub mark: u32,
    /// WireGuard's private key, from `private_key_file` or a wg-quick file.
    pub private_key: Option<Key>,
    /// The tunnel's own addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Resolvers to use while connected.
    pub dns: Vec<IpAddr>,
    /// Search domains of a wg-quick file's `DNS` line.
    pub dns_search: Vec<String>,
    /// Largest packet inside the tunnel in bytes, 576 to 65535 (1280 and more with IPv6).
    pub mtu: Option<u16>,
    /// UDP port to send from; chosen by the kernel if absent.
    pub listen_port: Option<u16>,
    /// Which WireGuard to use.
    pub backend: Backend,
    /// Connect when the daemon starts.
    pub connect_at_start: bool,
    /// Leave the tunnel up when the daemon stops; the lock stays anyway.
    pub keep_at_stop: bool,
}

impl Tunnel {
    /// Whether the daemon brings it up.
    pub fn is_managed(&self) -> bool {
        self.kind == TunnelKind::Wireguard
    }
}

/// Who brings the tunnel's interface up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelKind {
    /// The daemon does, with WireGuard.
    Wireguard,
    /// Something else does: wg-quick, OpenVPN, sing-box.
    External,
}

/// Which WireGuard to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's if it has it, a userspace one otherwise.
    Auto,
    /// The kernel's.
    Kernel,
    /// A userspace one, on a tun device.
    Userspace,
}

/// `[[server]]`: one VPN server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Unique name.
    pub name: String,
    /// Where it listens, in order of preference; at least one.
    pub endpoints: Vec<SocketAddr>,
    /// Over what; WireGuard always UDP.
    pub protocol: Protocol,
    /// Present for WireGuard.
    pub public_key: Option<PublicKey>,
    /// Optional symmetric key.
    pub preshared_key: Option<Key>,
    /// What may be routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives; none if absent.
    pub persistent_keepalive: Option<u16>,
    /// What its datagrams must look like.
    pub message_shape: MessageShape,
}

/// Transport protocol of a server or a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// UDP, protocol number 17.
    Udp,
    /// TCP, protocol number 6.
    Tcp,
}

impl Protocol {
    /// Its number in IP's header (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Udp => 17,
            Protocol::Tcp => 6,
        }
    }
}

/// What a server's datagrams must look like to be let out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageShape {
    /// WireGuard's: message type 1 to 4 and three zero bytes.
    Wireguard,
    /// Any: for providers that use the reserved bytes or disguise the header, and for OpenVPN.
    Any,
}

/// `[allow]`: what may bypass the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// DHCP and neighbour discovery.
    pub dhcp: bool,
    /// Local networks.
    pub lan: Vec<IpNet>,
    /// Addresses inside `lan` that may be asked for names (ports 53, 853, 5353, 5355).
    pub lan_dns: Vec<IpAddr>,
    /// NTP servers.
    pub ntp: Vec<IpAddr>,
    /// Services on this machine that named networks may reach.
    pub inbound: Vec<Inbound>,
    /// Bridges that never leave the machine.
    pub internal: Vec<LinkPattern>,
    /// Ports of those bridges that lead to guests, spared by the egress guard: kinds "veth" and
    /// "tun" only.
    pub internal_ports: Vec<LinkPattern>,
}

/// A service on this machine that one network may reach.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inbound {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port; not zero.
    pub port: u16,
    /// Who may reach it.
    pub from: IpNet,
}

/// A link name, or the beginning of one followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkPattern {
    /// Exactly this name.
    Exact(String),
    /// Every name that begins so; not empty.
    Prefix(String),
}

impl LinkPattern {
    /// Reads what [`Display`](std::fmt::Display) writes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        value::link_pattern(text).map_err(value::Complaint::in_words)
    }

    /// Whether a link of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            LinkPattern::Exact(exact) => name == exact,
            LinkPattern::Prefix(start) => name.starts_with(start),
        }
    }
}

impl std::fmt::Display for LinkPattern {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkPattern::Exact(name) => out.write_str(name),
            LinkPattern::Prefix(start) => write!(out, "{start}*"),
        }
    }
}

/// `[forward]`: what happens to packets of containers, guests and LAN clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Drop them, or let them into the tunnel only.
    pub mode: ForwardMode,
}

/// See [`Forward`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMode {
    /// Dropped.
    Drop,
    /// Into the tunnel only, under the tunnel's own address.
    Tunnel,
}

/// Reads a configuration with its drop-ins and the files it names.
///
/// **Drop-ins** are `*.toml` in the directory that has the file's name with `.d` for `.toml`
/// (`/etc/killswitch.d/`), in byte order of their names; names that begin with a dot are skipped.
/// Each is laid over what came before: tables are joined key by key and the later value of a key
/// wins, an array as a whole. Only `[[server]]` adds up: a drop-in's servers come after those
/// before. A server name in two places is an error.
///
/// **A wg-quick file** named by `tunnel.config` gives the interface its name unless
/// `tunnel.interface` does, and its peers come before every `[[server]]`. A key that both give is
/// an error.
///
/// **Files**, every one of them, must be regular files of root's that nobody else can write to, in
/// a directory of root's that nobody else can write to (unless it is sticky), not symbolic links,
/// at most 1 MiB of text. A file that holds a key must not be readable by others. Relative paths
/// start at the directory of the file that names them; `${CREDENTIALS_DIRECTORY}/` at the start of
/// a path is systemd's directory of credentials.
///
/// # Errors
/// Everything that keeps it from being used, with file, line, key, offending text and a suggestion.
/// Unknown keys and bad values are reported all at once; what contradicts something else, once
/// every value is good by itself.
pub fn load(path: &Path) -> Result<Config, Error> {
    file::load(path)
}
