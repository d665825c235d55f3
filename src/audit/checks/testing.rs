//! A clean machine, for tests to spoil.

use std::collections::{BTreeMap, BTreeSet};

use crate::audit::facts::{Initrd, Processes, State as UnitState, Units};
use crate::audit::{Facts, Wanted, judge};
use crate::lock::{Layers, State, Status, Tunnel};
use crate::netlink::{Attached, Link};
use crate::policy::{self, Policy};

pub(super) fn wanted() -> Wanted {
    let tunnel = policy::Tunnel {
        interface: "wg0".into(),
        kinds: ["wireguard"].into(),
        addresses: ["10.64.0.2".parse().unwrap()].into(),
    };
    Wanted {
        policy: Policy { tunnel: Some(tunnel), ..Policy::strictest() },
        dns: vec!["10.64.0.1".parse().unwrap()],
        at_boot: true,
        complaints: Vec::new(),
    }
}

/// Locked and connected, with a NIC and a tunnel.
pub(super) fn facts() -> Facts {
    Facts {
        status: status(),
        kernel: Ok((6, 18)),
        links: Ok(vec![
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "wg0", Some("wireguard")),
        ]),
        attached: Ok([(1, "lo"), (2, "eth0"), (3, "wg0")]
            .map(|(link, name)| Attached { link, name: name.into(), ..Attached::default() })
            .into()),
        filters: Ok(Vec::new()),
        tables: Ok(Vec::new()),
        legacy: Ok(BTreeSet::new()),
        rules: Ok(Vec::new()),
        local_routes: Ok(Vec::new()),
        addresses: Ok(Vec::new()),
        elsewhere: Ok(Vec::new()),
        processes: Ok(Processes::default()),
        settings: [("net/ipv4/conf/all/arp_ignore".to_owned(), "1".to_owned())].into(),
        resolvers: Ok(vec!["10.64.0.1".parse().unwrap()]),
        connectivity: Ok(Vec::new()),
        modes: Ok(Vec::new()),
        clock: Ok((2_000_000_000, 0)),
        units: Ok(Units {
            lock: UnitState::Enabled,
            daemon: UnitState::Enabled,
            ..Units::default()
        }),
        initrd: Ok(Initrd::default()),
    }
}

fn status() -> Status {
    Status {
        state: State::Connected,
        locked: true,
        intact: true,
        degraded: Vec::new(),
        tunnel: Some(Tunnel {
            interface: "wg0".into(),
            up: true,
            server: None,
            endpoint: None,
            last_handshake_age_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
            routed: true,
        }),
        layers: Layers { table: true, egress: vec!["eth0".into()], routes: true, owned: true },
        dropped: BTreeMap::new(),
        daemon: true,
        exceptions: Vec::new(),
        routing_guard: true,
    }
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.map(str::to_owned),
        loopback: index == 1,
        ethernet: kind.is_none(),
        up: true,
        running: true,
        mtu: 1500,
        ..Link::default()
    }
}

/// What is found, in order.
pub(super) fn ids(facts: &Facts, wanted: &Wanted) -> Vec<&'static str> {
    judge(facts, wanted).findings.iter().map(|finding| finding.id).collect()
}

#[test]
fn a_clean_machine_has_no_finding_and_no_check_is_left_out() {
    let report = judge(&facts(), &wanted());
    assert!(report.findings.is_empty(), "{report:?}");
    assert_eq!((report.checks, report.exit_code()), (crate::audit::checks().count(), 0));
}
