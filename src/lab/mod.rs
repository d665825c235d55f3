//! The laboratory: a client, a home router, an Internet and two VPN servers in private network
//! namespaces, with everything the client sends captured and judged.
//!
//! The demo and the tests use it alike. Nothing here touches the machine's own network:
//! [`namespaces::enter_private`] leaves it first, and every [`Host`] refuses to work in it.
//!
//! ```text
//! namespaces -> Host -> Lab -> Wireguard, Senders  (what happens)
//!                          \-> Capture -> decoder  (what is seen)
//! ```

pub mod addresses;
pub mod advertisement;
pub mod bus;
pub mod capture;
mod command;
pub mod daemon;
pub mod decoder;
pub mod demo;
pub mod dhcp;
mod error;
pub mod faults;
pub mod harness;
pub mod host;
pub mod link;
pub mod namespaces;
pub mod services;
pub mod setup;
mod topology;
pub mod traffic;
pub mod wireguard;

pub use bus::Bus;
pub use capture::{Capture, Report};
pub use command::main;
pub use daemon::Daemon;
pub use decoder::{Expectation, Verdict};
pub use error::{Context, Error, Result};
pub use faults::Fault;
pub use host::Host;
pub use topology::{Lab, VpnServer};
pub use traffic::Senders;
pub use wireguard::Wireguard;
