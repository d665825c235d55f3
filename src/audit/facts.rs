//! What is read of the machine: each fact, or why it is not known.

mod boot;
mod namespaces;
mod network;
mod processes;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

pub use boot::{Early, Initrd, State, Units};
pub use namespaces::Elsewhere;
pub use network::{Address, Mark, PolicyRule, is_eui64};
pub use processes::{Process, Processes};
pub use settings::Mode;

use crate::lock::Status;
use crate::netfilter::live::ForeignTable;
use crate::netlink::{Attached, Filter, Link, Route};

/// Why a fact is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// This machine has no such thing.
    NotApplicable(String),
    /// It could not be read, and why.
    Unreadable(String),
}

/// A fact.
pub type Reading<T> = Result<T, Unknown>;

impl Unknown {
    fn of(what: &str, error: &io::Error) -> Self {
        Unknown::Unreadable(format!("{what}: {error}"))
    }
}

/// Everything that the checks are told.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What `status` says.
    pub status: Status,
    /// Version of the kernel.
    pub kernel: Reading<(u32, u32)>,
    /// Every link.
    pub links: Reading<Vec<Link>>,
    /// Every link again, with what hangs on it.
    pub attached: Reading<Vec<Attached>>,
    /// Filters of tc(8).
    pub filters: Reading<Vec<Filter>>,
    /// Other programs' tables.
    pub tables: Reading<Vec<ForeignTable>>,
    /// Tables of iptables-legacy: "ip nat".
    pub legacy: Reading<BTreeSet<String>>,
    /// Policy rules, but for the routing guard's.
    pub rules: Reading<Vec<PolicyRule>>,
    /// Routes of table local that lead to a link.
    pub local_routes: Reading<Vec<Route>>,
    /// Addresses of this machine.
    pub addresses: Reading<Vec<Address>>,
    /// Links in other network namespaces that matter.
    pub elsewhere: Reading<Vec<Elsewhere>>,
    /// Processes in this network namespace.
    pub processes: Reading<Processes>,
    /// Settings below /proc/sys, by their path there, without the line's end.
    pub settings: BTreeMap<String, String>,
    /// Addresses in /etc/resolv.conf.
    pub resolvers: Reading<Vec<IpAddr>>,
    /// Files of NetworkManager's with a connectivity check.
    pub connectivity: Reading<Vec<String>>,
    /// Files and directories that only root may write to.
    pub modes: Reading<Vec<Mode>>,
    /// Seconds since 1970: now, and when the newest of our files was written.
    pub clock: Reading<(u64, u64)>,
    /// What systemd does at boot.
    pub units: Reading<Units>,
    /// What runs before it.
    pub initrd: Reading<Initrd>,
}

/// Whether this is no user namespace: there, other users and their processes are not seen.
fn sees_every_user() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().last() == Some("4294967295")
}

impl Facts {
    /// Reads everything; `status` is what `killswitch status` says, `configuration` where the
    /// configuration is. Takes well under a second; disturbs nothing.
    pub fn read(status: Status, configuration: &Path) -> Self {
        Facts {
            status,
            kernel: settings::kernel(),
            links: network::links(),
            attached: network::attached(),
            filters: network::filters(),
            tables: network::tables(),
            legacy: network::legacy(),
            rules: network::rules(),
            local_routes: network::local_routes(),
            addresses: network::addresses(),
            elsewhere: namespaces::elsewhere(),
            processes: processes::processes(),
            settings: settings::all(),
            resolvers: settings::resolvers(),
            connectivity: settings::connectivity(),
            modes: settings::modes(configuration),
            clock: settings::clock(configuration),
            units: boot::units(),
            initrd: boot::initrd(),
        }
    }
}
