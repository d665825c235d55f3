//! The routing guard: policy rules that keep the promise alone when the nft table is gone.
//!
//! Every packet that the policy does not name looks up our table, whose last route refuses, and
//! then meets a rule that refuses: the route alone is not enough, since IPv6 passes over it for a
//! socket that is bound to a link. The tunnel's outer packets are known by their mark and are
//! decided first, so the lookup of our table needs no `not fwmark`.
//!
//! The kernel's own questions of the rules must still be answered, or no IPv4 default route could be
//! added under the guard: see `kernel_questions` in its source.
//!
//! [`Guard`] is plain data and a pure function of the policy; [`apply`], [`read`] and [`remove`]
//! are its way to the kernel and back. Rules and routes carry `protocol kernel`, which
//! systemd-networkd spares (threat 51).
//!
//! What it cannot do, so that nobody relies on it:
//! - IPv4 takes a destination without a route to be on the link that the socket is bound to
//!   (SO_BINDTODEVICE, IP_UNICAST_IF, IP_PKTINFO; `ip_route_output_key_hash_rcu`). The kernel then
//!   asks for the address by ARP, and whoever answers gets the packet (threat 50).
//! - Broadcast and link-local multicast from a bound socket, and all IPv6 multicast, ask no rule.
//! - Ports are unknown for raw sockets, so there the ban on LAN DNS does not hold.
//! - A packet that a foreign nft chain routes anew (`type route`, NAT on output) is asked for without
//!   its protocol, so it may take a near route of table main, never the default one.
//! - Rules before ours (VRF's at 1000, another VPN's) decide first.

mod guard;
mod kernel;
mod links;
mod message;

pub use guard::{
    Action, Family, GROUP, Guard, LAST_METRIC, PREFERENCES, Route, RouteKind, Rule, TABLE, is_near,
};
pub use kernel::{
    Change, Error, Ipv6, Live, Refusal, Report, apply, apply_with, read, remove, remove_with,
};
pub use links::{group_internal_bridges, grouped_wrongly};
pub use message::{add_tunnel_route, remove_tunnel_route};
