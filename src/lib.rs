//! A VPN kill switch: from a configuration to a kernel that lets nothing else out.
//!
//! The lock, in the order in which data flows:
//!
//! ```text
//! config -> policy -> ruleset -> netfilter (kernel)
//!              \----> routing  (kernel)
//! ```
//!
//! [`config`] reads files; [`policy`] says what may leave; [`ruleset`] says it in nftables' terms
//! (pure: no I/O, no clock); [`netfilter`] and [`routing`] put it into the kernel and read it
//! back; [`lock`] joins the two; [`cli`] is what people type.
//!
//! The daemon holds the lock and keeps the tunnel:
//!
//! ```text
//! watch, requests -> daemon -> engine -> effects -> lock, wireguard, dns
//! ```
//!
//! [`watch`] tells that something changed; [`engine`] decides (pure, as above); [`wireguard`] is the
//! tunnel; [`dns`] the resolvers behind it; [`daemon`] the loop that joins them; [`dbus`] how it is
//! asked, and [`status`], [`explain`] and [`audit`] what can be asked without it; [`exceptions`] what
//! it leaves open for a while (pure); [`evidence`] what is kept of it all, and [`metrics`] its numbers.

pub mod audit;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dbus;
pub mod dice;
pub mod dns;
pub mod engine;
pub mod evidence;
pub mod exceptions;
pub mod explain;
mod harmless;
pub mod html;
#[cfg(feature = "lab")]
pub mod lab;
pub mod leaktest;
pub mod lock;
pub mod metrics;
pub mod netfilter;
pub mod netlink;
pub mod policy;
mod process;
pub mod routing;
pub mod ruleset;
pub mod status;
mod unix_socket;
pub mod watch;
pub mod wireguard;
