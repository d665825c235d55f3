//! The daemon's decisions: an event and the time go in, effects come out.
//!
//! Pure: no I/O, no clock, no async. [`Engine::handle`] is the only way in; whoever runs it performs
//! the effects in their order, one at a time, and tells each one's end by [`Event::Done`] or
//! [`Event::Failed`]; a failure does not cancel the effects after it. It calls with [`Event::Tick`]
//! when [`Engine::deadline`] has come.
//!
//! Nothing here can open the lock but [`Effect::Unlock`], which only [`Command::Unlock`] yields.
//! Every other effect acts on the tunnel, or holds the lock as the configuration says.

mod backoff;
mod candidates;
mod liveness;
mod machine;
mod pending;
mod trouble;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use machine::Engine;

/// Time since the machine started, sleep included (CLOCK_BOOTTIME): no clock change moves it.
pub type Time = Duration;

/// A way to reach a VPN: one endpoint of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    /// Position in [`Settings::servers`].
    pub server: usize,
    /// Where it listens.
    pub endpoint: SocketAddr,
}

/// What the engine needs to know of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether the daemon brings the tunnel up; otherwise something else does, and the engine only
    /// holds the lock.
    pub managed: bool,
    /// In order of preference.
    pub servers: Vec<Server>,
    /// Whether to connect without being told to.
    pub connect_at_start: bool,
}

/// A server as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its unique name.
    pub name: String,
    /// In order of preference; at least one.
    pub endpoints: Vec<SocketAddr>,
}

/// The physical way out of one address family: the best default route of table main, or
/// two halves of one that lead the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uplink {
    /// Index of its link, which is up.
    pub link: u32,
    /// The router, unless the link is point-to-point.
    pub gateway: Option<IpAddr>,
    /// This machine's addresses on the link that can reach further than the link (not link-local),
    /// sorted.
    pub addresses: Vec<IpAddr>,
}

/// What the kernel says of links, addresses and routes, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The way out over IPv4.
    pub v4: Option<Uplink>,
    /// The way out over IPv6.
    pub v6: Option<Uplink>,
    /// The link with the tunnel's name.
    pub tunnel: TunnelLink,
}

/// The link with the tunnel's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TunnelLink {
    /// There is none.
    #[default]
    Absent,
    /// Of another kind than the tunnel, or not made by us: somebody took the name.
    Foreign,
    /// Ours, but administratively down.
    Down,
    /// Ours and up.
    Up,
}

/// What WireGuard says of its one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The peer that is set; `None`: no peer, or one that the configuration does not know.
    pub candidate: Option<Candidate>,
    /// Age of the last handshake; `None`: never one.
    pub handshake_age: Option<Duration>,
    /// Bytes received from the peer, handshakes and keepalives included.
    pub received: u64,
    /// Bytes sent to the peer, likewise.
    pub sent: u64,
}

/// What an administrator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Connect; to this server first, if one is named (its position in [`Settings::servers`]).
    Connect(Option<usize>),
    /// Take the tunnel down; the lock stays.
    Disconnect,
    /// Begin anew: a fresh handshake, starting with the present server.
    Reconnect,
    /// Lock, if it was open.
    Lock,
    /// Open the lock. The only way to do so.
    Unlock,
}

/// A layer of the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// The nftables tables.
    Tables,
    /// The routing guard.
    Routing,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first event: what was found in the kernel, e.g. of a daemon that was killed. The lock is
    /// held from here on: only a running daemon can be told to open it.
    Started {
        /// Links and routes.
        network: Network,
        /// The tunnel's state, if there is a tunnel of ours.
        tunnel: Option<Reading>,
    },
    /// Links, addresses or routes changed: this is how they are now.
    Network(Network),
    /// A new link appeared: the guards must cover it.
    LinkAppeared,
    /// Somebody else changed a layer of the lock.
    Disturbed(Layer),
    /// The answer to [`Effect::ReadTunnel`].
    Tunnel(Reading),
    /// Somebody sent into the tunnel after [`Effect::WatchTraffic`].
    Sent,
    /// The tunnel's resolvers are not the system's any more: somebody replaced or forgot them.
    ResolversLost,
    /// The machine slept and woke.
    Resumed,
    /// An administrator's wish.
    Command(Command),
    /// A new configuration; its lock has been applied.
    Configured(Settings),
    /// An effect was performed.
    Done(Effect),
    /// An effect failed, and why.
    Failed(Effect, String),
    /// The time of [`Engine::deadline`] has come.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Read every layer of the lock, mend what differs from the configuration, own the table.
    HoldLock,
    /// Open the lock: every layer goes.
    Unlock,
    /// Make the tunnel's link, or adopt it: key, mark, addresses, MTU, up. A foreign link of its
    /// name is put aside first.
    EnsureLink,
    /// Remove the tunnel's link.
    RemoveLink,
    /// Make this the one peer, with a new session: it has no handshake yet, even if it was the peer
    /// before. The link stays.
    SetPeer(Candidate),
    /// Route everything into the tunnel's link, in our own table.
    EnsureRoutes,
    /// Use the tunnel's resolvers.
    SetDns,
    /// Give the resolvers back as they were.
    RestoreDns,
    /// Send a small packet (at most 96 bytes before encryption) through the tunnel that a living
    /// server answers. Done when sent.
    Probe,
    /// Read the peer's counters: [`Event::Tunnel`] follows, then [`Event::Done`].
    ReadTunnel,
    /// Tell once, by [`Event::Sent`], when something is sent into the tunnel.
    WatchTraffic,
    /// The state changed: tell whoever listens.
    Announce(State),
}

/// The daemon's state, for people and scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// An administrator opened the lock, and it has not been seen closed since.
    Open,
    /// Locked; no tunnel is wanted.
    Disconnected,
    /// Locked; a tunnel is wanted, but no server can be reached over the networks that are there.
    Waiting,
    /// Locked; a handshake is under way.
    Connecting(Candidate),
    /// Locked; the tunnel works.
    Connected(Candidate),
    /// Locked; something else brings the tunnel up.
    External {
        /// Whether its link is up.
        up: bool,
    },
}
