//! The checks: each a pure function of the facts and of what is wanted.

mod boot;
mod links;
mod lock;
mod processes;
mod routing;
mod settings;
mod tables;
#[cfg(test)]
mod testing;

use super::facts::Reading;
use super::{Facts, Found, Unknown, Wanted};

pub(super) type Check = fn(&Facts, &Wanted) -> Result<Found, Unknown>;

/// Every check by its name.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("configuration", lock::configuration),
    ("lock", lock::lock),
    ("egress-guard", lock::egress),
    ("routing-guard", lock::routing),
    ("daemon", lock::daemon),
    ("kernel", lock::kernel),
    ("tables", tables::tables),
    ("iptables-legacy", tables::legacy),
    ("xdp", links::xdp),
    ("tc", links::filters),
    ("namespaces", links::elsewhere),
    ("containers", processes::containers),
    ("capabilities", processes::capabilities),
    ("packet-sockets", processes::packet_sockets),
    ("af-xdp", processes::xdp_sockets),
    ("policy-rules", routing::rules),
    ("routes", routing::routes),
    ("settings", settings::settings),
    ("resolvers", settings::resolvers),
    ("networkmanager", settings::connectivity),
    ("ipv6-privacy", settings::privacy),
    ("files", settings::files),
    ("clock", settings::clock),
    ("units", boot::units),
    ("initrd", boot::initrd),
];

/// A fact, or why the check cannot be made.
fn known<T>(reading: &Reading<T>) -> Result<&T, Unknown> {
    reading.as_ref().map_err(Clone::clone)
}
