//! What the kernel lists: ours, all of it, and nobody else's.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use ipnet::IpNet;
use killswitch::netlink::{self, Family, Socket};
use killswitch::policy::{Inbound, LinkPattern, Policy, Protocol};
use killswitch::routing::{self, Guard};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::lab::{Lab, run};
use crate::leaks::policy;

pub const TRIALS: &[(&str, fn())] = &[
    ("applying_twice_changes_nothing", applying_twice_changes_nothing),
    ("removal_leaves_what_others_made", removal_leaves_what_others_made),
    ("t51_removal_by_others_is_seen_and_mended", t51_removal_by_others_is_seen_and_mended),
    ("foreign_routes_in_our_table_are_removed", foreign_routes_in_our_table_are_removed),
    ("a_link_in_the_group_is_seen_and_taken_out", a_link_in_the_group_is_seen_and_taken_out),
    ("an_external_tunnel_removes_the_guard", an_external_tunnel_removes_the_guard),
    ("failures_say_what_and_why", failures_say_what_and_why),
    ("a_strange_foreign_rule_is_no_obstacle", a_strange_foreign_rule_is_no_obstacle),
    ("random_policies_are_read_back", random_policies_are_read_back),
];

fn listing() -> String {
    ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
        .map(run)
        .concat()
}

fn full() -> Guard {
    let inbound =
        |net: &str| Inbound { protocol: Protocol::Tcp, port: 22, from: net.parse().unwrap() };
    Guard::from_policy(&Policy {
        dhcp: true,
        lan: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
        lan_dns: ["192.0.2.1".parse().unwrap()].into(),
        ntp: ["198.51.100.9".parse().unwrap()].into(),
        inbound: [inbound("192.0.2.0/24"), inbound("2001:db8:1::/64")].into(),
        internal: [LinkPattern::Prefix("br-".into())].into(),
        ..policy()
    })
}

fn assert_intact(guard: &Guard) {
    let live = routing::read().unwrap();
    assert_eq!(live.missing(guard), Vec::<String>::new());
    assert_eq!(live.extra(guard), Vec::<String>::new());
}

fn applying_twice_changes_nothing() {
    let _lab = Lab::new();
    let (one, two) = (full(), Guard::from_policy(&policy()));
    let report = routing::apply(&one).unwrap();
    assert_eq!((report.added, report.removed), (one.rules.len() + one.routes.len(), 0));
    let first = listing();
    assert_eq!(routing::apply(&one).unwrap(), routing::Report::default());
    assert_eq!(listing(), first);
    for _ in 0..3 {
        routing::apply(&two).unwrap();
        assert_intact(&two);
        routing::apply(&one).unwrap();
        assert_intact(&one);
    }
    // `ip rule` sees protocol kernel on all of ours.
    let rules = run("ip rule") + &run("ip -6 rule");
    let ours = rules.lines().filter(|line| line.starts_with("275"));
    assert!(ours.clone().count() > 20);
    assert!(ours.into_iter().all(|line| !line.contains(" proto ")), "{rules}");
}

fn removal_leaves_what_others_made() {
    let _lab = Lab::new();
    let before = listing();
    routing::apply(&full()).unwrap();
    routing::remove().unwrap();
    assert_eq!(listing(), before);

    run("ip rule add pref 27550 to 192.0.2.0/24 lookup main protocol static");
    run("ip rule add pref 27599 unreachable protocol static");
    run("ip rule add pref 100 fwmark 7 lookup 100");
    run("ip -6 rule add pref 27590 lookup 27507 protocol static");
    run("ip route add 10.0.0.0/8 via 192.0.2.1 table 100");
    let before = listing();
    routing::apply(&full()).unwrap();
    assert_intact(&full());
    routing::apply(&Guard::from_policy(&policy())).unwrap();
    assert!(routing::remove().unwrap() > 0);
    assert_eq!(listing(), before);
    assert_eq!(routing::remove().unwrap(), 0);
}

fn t51_removal_by_others_is_seen_and_mended() {
    let _lab = Lab::new();
    let guard = full();
    let nothing = routing::read().unwrap();
    assert_eq!(nothing.missing(&guard).len(), guard.rules.len() + guard.routes.len());
    routing::apply(&guard).unwrap();
    let whole = listing();
    for damage in [
        "ip rule del pref 27599",
        "ip -6 rule del pref 27590",
        "ip rule del pref 27520",
        "ip -6 route del unreachable default metric 4294967295 table 27507",
        "ip route del unreachable default table 27507",
    ] {
        run(damage);
        assert!(!routing::read().unwrap().missing(&guard).is_empty(), "{damage}");
        routing::apply(&guard).unwrap();
        assert_intact(&guard);
    }
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&listing()), sorted(&whole));
    // A second copy, and one that looks like ours with one more selector.
    for intrusion in [
        "ip rule add pref 27550 to 203.0.113.0/24 lookup main protocol kernel",
        "ip rule add pref 27550 iif eth0 to 192.0.2.0/24 lookup main protocol kernel",
        "ip -6 rule add pref 27551 not fwmark 9 lookup main protocol kernel",
        "ip rule add pref 27501 sport 1-9 lookup main protocol kernel",
    ] {
        run(intrusion);
        assert_eq!(routing::read().unwrap().extra(&guard).len(), 1, "{intrusion}");
        routing::apply(&guard).unwrap();
        assert_intact(&guard);
    }
}

fn foreign_routes_in_our_table_are_removed() {
    let _lab = Lab::new();
    let guard = full();
    routing::apply(&guard).unwrap();
    run("ip route add default via 192.0.2.1 table 27507");
    run("ip route add 198.51.100.0/24 dev eth0 table 27507");
    run("ip -6 route add default via 2001:db8:1::1 table 27507");
    run(
        "ip -6 route add default metric 7 table 27507 nexthop via 2001:db8:1::1 nexthop via 2001:db8:1::3",
    );
    assert!(routing::read().unwrap().extra(&guard).len() >= 4);
    routing::apply(&guard).unwrap();
    assert_intact(&guard);
    // As the tunnel's, but for the link.
    run("ip route add default dev eth0 proto kernel metric 5 table 27507");
    assert_eq!(routing::read().unwrap().extra(&guard).len(), 1);
    routing::apply(&guard).unwrap();
    assert_intact(&guard);
}

fn a_link_in_the_group_is_seen_and_taken_out() {
    let _lab = Lab::new();
    let guard = full();
    routing::apply(&guard).unwrap();
    let grouped = || {
        let socket = Socket::open(Family::Route).unwrap();
        routing::grouped_wrongly(&netlink::links(&socket).unwrap(), &guard)
    };
    assert!(grouped().is_empty());
    run("ip link set eth0 group 27507");
    assert_eq!(grouped(), ["eth0"]);
    routing::apply(&guard).unwrap();
    assert!(grouped().is_empty());
}

fn an_external_tunnel_removes_the_guard() {
    let _lab = Lab::new();
    let before = listing();
    routing::apply(&full()).unwrap();
    let external = Policy { routing_guard: false, ..policy() };
    routing::apply(&Guard::from_policy(&external)).unwrap();
    assert_eq!(listing(), before);
}

fn failures_say_what_and_why() {
    let _lab = Lab::new();
    let socket = Socket::open(Family::Route).unwrap();
    let everything = "0.0.0.0/0".parse().unwrap();
    let error = routing::add_tunnel_route(&socket, 4711, everything).unwrap_err().to_string();
    assert!(error.contains("add route 0.0.0.0/0 dev #4711"), "{error}");
    assert!(error.contains("No such device"), "{error}");
}

fn a_strange_foreign_rule_is_no_obstacle() {
    let _lab = Lab::new();
    let name = std::ffi::OsStr::from_bytes(b"q\xff");
    let mut command = std::process::Command::new("ip");
    command.args(["rule", "add", "pref", "27550", "lookup", "100", "iif"]).arg(name);
    assert!(command.status().unwrap().success());
    routing::apply(&full()).unwrap();
    assert_intact(&full());
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32)
            .prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
        (any::<[u8; 16]>(), 0u8..=128)
            .prop_map(|(ip, length)| IpNet::new(ip.into(), length).unwrap()),
    ]
}

fn inbound() -> impl Strategy<Value = Inbound> {
    let port = prop_oneof![1u16..=65535, Just(22), Just(5353)];
    (any::<bool>(), port, net()).prop_map(|(tcp, port, from)| Inbound {
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        port,
        from,
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let addresses = || prop::collection::btree_set(any::<IpAddr>(), 0..4);
    (
        (1u32.., any::<bool>(), any::<bool>(), any::<bool>()),
        prop::collection::vec(net(), 0..5),
        addresses(),
        addresses(),
        prop::collection::btree_set(inbound(), 0..5),
    )
        .prop_map(|((mark, locked, dhcp, internal), lan, lan_dns, ntp, inbound)| Policy {
            mark,
            tunnel: if locked { None } else { policy().tunnel },
            dhcp,
            lan: IpNet::aggregate(&lan),
            lan_dns,
            ntp,
            inbound,
            internal: internal.then(|| LinkPattern::Exact("br0".into())).into_iter().collect(),
            ..Policy::strictest()
        })
}

fn random_policies_are_read_back() {
    let _lab = Lab::new();
    let before = listing();
    let config = Config { cases: 1000, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&any_policy(), |policy| {
            let guard = Guard::from_policy(&policy);
            routing::apply(&guard).unwrap();
            assert_intact(&guard);
            Ok(())
        })
        .unwrap();
    routing::remove().unwrap();
    assert_eq!(listing(), before);
}

/// Not a check: prints what applying costs.
pub fn time() {
    let _lab = Lab::new();
    let guard = full();
    for (what, guard) in
        [("strictest", &Guard::from_policy(&Policy::strictest())), ("full", &guard)]
    {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let start = Instant::now();
            routing::apply(guard).unwrap();
            first.push(start.elapsed());
            let start = Instant::now();
            routing::apply(guard).unwrap();
            second.push(start.elapsed());
            routing::remove().unwrap();
        }
        first.sort();
        second.sort();
        println!(
            "{what}: {} rules, median first {:?}, second {:?}; worst {:?}, {:?}",
            guard.rules.len(),
            first[100],
            second[100],
            first[199],
            second[199]
        );
    }
}
