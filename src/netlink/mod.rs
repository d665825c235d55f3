//! One synchronous netlink socket for both families that the lock speaks: nfnetlink
//! ([`crate::netfilter`]) and rtnetlink ([`crate::routing`]).
//!
//! Synchronous on purpose: the lock runs at boot, before anything else, with no async runtime.

mod addresses;
mod attached;
mod encode;
mod hardware;
mod links;
mod routes;
mod socket;

pub use addresses::{Address, addresses, is_link_local};
pub use attached::{Attached, Filter, attached, filters, namespace_number};
pub(crate) use encode::encode;
pub use hardware::hardware_addresses;
pub use links::{Link, links};
pub(crate) use routes::read_local_route;
pub use routes::{Route, main_route};
pub(crate) use socket::text;
pub use socket::{Ack, Attributes, Failure, Family, Message, Socket};
