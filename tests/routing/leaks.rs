//! What gets out, and what does not.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use killswitch::netlink::{Family, Socket};
use killswitch::policy::{Inbound, LinkPattern, Policy, Protocol, Tunnel};
use killswitch::routing::{self, Guard, Report};

use crate::lab::{BEHIND, How, INTERNET, KINDS, Kind, LAN, Lab, address, attempt, run, sysctl};

const MARK: u32 = 0x6b73;

pub const TRIALS: &[(&str, fn())] = &[
    ("nothing_reaches_the_internet", nothing_reaches_the_internet),
    ("t50_bound_sockets_do_not_reach_the_gateway", t50_bound_sockets_do_not_reach_the_gateway),
    ("t50_limit_whoever_answers_arp_gets_bound_ipv4", t50_limit),
    ("t45_rogue_routes", t45_rogue_routes),
    ("t46_public_prefix_on_the_link", t46_public_prefix_on_the_link),
    ("t47_private_address_behind_the_gateway", t47_private_address_behind_the_gateway),
    ("t48_lan_without_its_dns", t48_lan_without_its_dns),
    ("t18_socket_older_than_the_guard", t18_socket_older_than_the_guard),
    ("marked_packets_pass", marked_packets_pass),
    ("marked_packets_never_enter_the_tunnel", marked_packets_never_enter_the_tunnel),
    ("strictest_stops_marked_packets", strictest_stops_marked_packets),
    ("inbound_service_answers_under_rp_filter", inbound_service_answers_under_rp_filter),
    ("t52_marked_replies_pass_rp_filter", t52_marked_replies_pass_rp_filter),
    ("ntp_server_only", ntp_server_only),
    ("dhcp_renewal_only", dhcp_renewal_only),
    ("internal_bridge_and_nothing_else", internal_bridge_and_nothing_else),
    ("routes_can_be_added_under_the_guard", routes_can_be_added_under_the_guard),
    ("the_router_can_resolve_us_under_rp_filter", the_router_can_resolve_us),
    ("forwarded_packets_are_refused", forwarded_packets_are_refused),
    ("no_gap_between_two_policies", no_gap_between_two_policies),
];

pub fn policy() -> Policy {
    let tunnel = Tunnel {
        interface: "wg0".into(),
        kinds: BTreeSet::from(["wireguard"]),
        addresses: BTreeSet::new(),
    };
    Policy { tunnel: Some(tunnel), ..Policy::strictest() }
}

fn apply(policy: &Policy) -> Report {
    crate::lab::assert_private();
    routing::apply(&Guard::from_policy(policy)).unwrap()
}

fn nothing_reaches_the_internet() {
    let lab = Lab::new();
    let all = |expected: bool| {
        for to in INTERNET.into_iter().chain(LAN).chain([BEHIND]) {
            for kind in KINDS {
                assert_eq!(lab.reaches(kind, to, 443, How::Plain), expected, "{kind:?} {to}");
            }
        }
    };
    all(true);
    assert_eq!(apply(&policy()).degraded, Vec::<String>::new());
    all(false);
    // At once, not after a time-out.
    for to in INTERNET {
        let error = attempt(Kind::Tcp, to, 443, How::Plain).unwrap_err();
        assert!(
            [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable].contains(&error.kind()),
            "{error}"
        );
    }
    routing::remove().unwrap();
    all(true);
}

/// `IP_UNICAST_IF` has no safe wrapper: Python sends.
fn unicast_if(to: &str) -> bool {
    const SCRIPT: &str = "
import socket, struct, sys
to = sys.argv[1]
index = socket.if_nametoindex('eth0')
if ':' in to:
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, 76, struct.pack('!I', index))
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 50, struct.pack('!I', index))
try:
    s.sendto(b'x', (to, 443))
except OSError:
    pass
";
    Command::new("python3").args(["-c", SCRIPT, to]).status().is_ok_and(|status| status.success())
}

fn t50_bound_sockets_do_not_reach_the_gateway() {
    let lab = Lab::new();
    let all = |expected: bool| {
        for to in INTERNET {
            for kind in KINDS {
                assert_eq!(lab.reaches(kind, to, 443, How::Bound), expected, "{kind:?} {to}");
            }
            assert_eq!(lab.reaches(Kind::Udp, to, 443, How::PacketInfo), expected, "{to}");
            let mut has_python = true;
            let reached = lab.link_reached(to, || has_python = unicast_if(to)).is_some();
            assert!(reached == expected || !has_python, "IP_UNICAST_IF {to}");
        }
    };
    all(true);
    apply(&policy());
    all(false);
}

/// Not a promise but a limit, kept here so that a kernel without it is noticed.
fn t50_limit() {
    let lab = Lab::new();
    apply(&policy());
    let [v4, v6] = INTERNET;
    assert!(!lab.reaches(Kind::Udp, v4, 443, How::Bound));
    lab.at_router(|| {
        sysctl("net/ipv4/conf/all/arp_ignore", "0");
        sysctl("net/ipv6/conf/all/proxy_ndp", "1");
    });
    run("ip neighbour flush all");
    assert!(lab.reaches(Kind::Udp, v4, 443, How::Bound));
    assert!(!lab.reaches(Kind::Udp, v6, 443, How::Bound));
    assert!(!lab.reaches(Kind::Udp, v4, 443, How::Plain));
}

fn t45_rogue_routes() {
    let lab = Lab::new();
    run("ip route add 128.0.0.0/1 via 192.0.2.1");
    run("ip route add 198.51.100.9/32 via 192.0.2.1");
    run("ip route add 2000::/3 via 2001:db8:1::1");
    run("ip route add 2001:db8:9::9/128 via 2001:db8:1::1");
    for to in INTERNET {
        assert!(lab.reaches(Kind::Udp, to, 443, How::Plain));
    }
    let lan = vec!["192.0.2.0/24".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    apply(&Policy { lan, dhcp: true, ..policy() });
    for to in INTERNET {
        assert!(!lab.reaches(Kind::Udp, to, 443, How::Plain), "{to}");
    }
}

fn t46_public_prefix_on_the_link() {
    let lab = Lab::new();
    address("203.0.113.2/24", "eth0");
    lab.at_router(|| address("203.0.113.1/24", "far"));
    assert!(lab.reaches(Kind::Udp, "203.0.113.1", 443, How::Plain));
    apply(&Policy { lan: vec!["10.0.0.0/8".parse().unwrap()], ..policy() });
    assert!(!lab.reaches(Kind::Udp, "203.0.113.1", 443, How::Plain));
}

fn t47_private_address_behind_the_gateway() {
    let lab = Lab::new();
    address("10.0.0.2/24", "eth0");
    lab.at_router(|| address("10.0.0.1/24", "far"));
    assert!(lab.reaches(Kind::Udp, BEHIND, 443, How::Plain));
    apply(&Policy { lan: vec!["10.0.0.0/8".parse().unwrap()], ..policy() });
    assert!(lab.reaches(Kind::Udp, "10.0.0.1", 443, How::Plain));
    assert!(!lab.reaches(Kind::Udp, BEHIND, 443, How::Plain));
    run("ip route add 0.0.0.0/1 via 192.0.2.1");
    assert!(!lab.reaches(Kind::Udp, BEHIND, 443, How::Plain), "by a rogue /1");
}

fn t48_lan_without_its_dns() {
    let lab = Lab::new();
    let lan = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()];
    let names =
        [(Kind::Udp, 53), (Kind::Tcp, 53), (Kind::Tcp, 853), (Kind::Udp, 5353), (Kind::Udp, 5355)];
    for to in LAN {
        assert!(lab.reaches(Kind::Udp, to, 53, How::Plain));
    }
    apply(&Policy { lan: lan.clone(), ..policy() });
    for to in LAN {
        for kind in KINDS {
            assert!(lab.reaches(kind, to, 445, How::Plain), "{kind:?} {to}");
        }
        for (kind, port) in names {
            assert!(!lab.reaches(kind, to, port, How::Plain), "{kind:?} {to}:{port}");
        }
    }
    // IPv6 does not fall through to the LAN's rule when bound.
    assert!(!lab.reaches(Kind::Udp, LAN[1], 53, How::Bound));
    let lan_dns = LAN.iter().map(|to| to.parse().unwrap()).collect();
    apply(&Policy { lan, lan_dns, ..policy() });
    for to in LAN {
        assert!(lab.reaches(Kind::Udp, to, 53, How::Plain), "{to}");
    }
    for to in INTERNET {
        assert!(!lab.reaches(Kind::Udp, to, 53, How::Plain), "{to}");
    }
}

fn t18_socket_older_than_the_guard() {
    let lab = Lab::new();
    for to in INTERNET {
        let bind = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(bind).unwrap();
        socket.connect((to, 443)).unwrap();
        let send = || drop(socket.send(b"x"));
        assert!(lab.link_reached(to, send).is_some());
        apply(&policy());
        let send = || drop(socket.send(b"x"));
        assert!(lab.link_reached(to, send).is_none(), "{to}");
        routing::remove().unwrap();
    }
}

fn marked_packets_pass() {
    let lab = Lab::new();
    apply(&policy());
    for to in INTERNET {
        assert!(lab.reaches(Kind::Udp, to, 51820, How::Mark(MARK)), "{to}");
        assert!(!lab.reaches(Kind::Udp, to, 51820, How::Mark(MARK + 1)), "{to}");
    }
}

fn marked_packets_never_enter_the_tunnel() {
    let lab = Lab::new();
    lab.pair("wg0", "peer");
    // Without ARP a frame goes out at once, as from a tunnel.
    run("ip link set wg0 arp off");
    address("10.64.0.2/32", "wg0");
    address("fd64::2/128", "wg0");
    let mut policy = policy();
    policy.tunnel.as_mut().unwrap().kinds = ["veth"].into();
    apply(&policy);
    let wg0 = nix::net::if_::if_nametoindex("wg0").unwrap();
    let socket = Socket::open(Family::Route).unwrap();
    let peer = lab.at_router(|| nix::net::if_::if_nametoindex("peer").unwrap()) as usize;
    for (to, everything) in INTERNET.into_iter().zip(["0.0.0.0/0", "::/0"]) {
        let everything = everything.parse().unwrap();
        let send = |how| lab.link_reached(to, || drop(attempt(Kind::Udp, to, 443, how)));
        routing::add_tunnel_route(&socket, wg0, everything).unwrap();
        routing::add_tunnel_route(&socket, wg0, everything).unwrap();
        assert_eq!(send(How::Plain), Some(peer), "{to}");
        assert_ne!(send(How::Mark(MARK)), Some(peer), "{to}");
        run("ip route flush table main");
        run("ip -6 route flush table main");
        assert_eq!(send(How::Mark(MARK)), None, "{to}");
        // The tunnel's route is no damage, and applying again keeps it.
        assert!(routing::read().unwrap().extra(&Guard::from_policy(&policy)).is_empty());
        apply(&policy);
        assert_eq!(send(How::Plain), Some(peer), "{to}");
        routing::remove_tunnel_route(&socket, wg0, everything).unwrap();
        routing::remove_tunnel_route(&socket, wg0, everything).unwrap();
        assert_eq!(send(How::Plain), None, "{to}");
    }
    routing::add_tunnel_route(&socket, wg0, "0.0.0.0/0".parse().unwrap()).unwrap();
    apply(&Policy::strictest());
    assert!(!lab.reaches(Kind::Udp, INTERNET[0], 443, How::Plain));
}

fn strictest_stops_marked_packets() {
    let lab = Lab::new();
    for to in INTERNET {
        assert!(lab.reaches(Kind::Udp, to, 51820, How::Mark(MARK)));
        apply(&Policy::strictest());
        assert!(!lab.reaches(Kind::Udp, to, 51820, How::Mark(MARK)), "{to}");
        routing::remove().unwrap();
    }
}

fn inbound_service_answers_under_rp_filter() {
    let lab = Lab::new();
    sysctl("net/ipv4/conf/all/rp_filter", "1");
    let _ssh = TcpListener::bind("[::]:22").unwrap();
    let _web = TcpListener::bind("[::]:80").unwrap();
    let answers = |to: &str, port: u16| {
        let target = format!("{to}:{port}").parse().unwrap();
        lab.at_router(|| TcpStream::connect_timeout(&target, Duration::from_millis(300)).is_ok())
    };
    let hosts = ["192.0.2.2", "[2001:db8:1::2]"];
    for host in hosts {
        assert!(answers(host, 22) && answers(host, 80));
    }
    apply(&policy());
    for host in hosts {
        assert!(!answers(host, 22));
    }
    let from =
        |net: &str| Inbound { protocol: Protocol::Tcp, port: 22, from: net.parse().unwrap() };
    apply(&Policy { inbound: [from("192.0.2.0/24"), from("2001:db8:1::/64")].into(), ..policy() });
    for host in hosts {
        assert!(answers(host, 22), "{host}");
        assert!(!answers(host, 80), "{host}");
    }
    apply(&Policy { inbound: [from("0.0.0.0/0"), from("::/0")].into(), ..policy() });
    for host in hosts {
        assert!(answers(host, 22), "{host}");
    }
    for to in INTERNET {
        assert!(!lab.reaches(Kind::Tcp, to, 22, How::Plain), "{to}");
    }
}

/// The nft table marks what comes from a server; then, and only then, the reply is valid.
fn t52_marked_replies_pass_rp_filter() {
    let lab = Lab::new();
    if Command::new("nft").arg("--version").output().is_err() {
        return;
    }
    sysctl("net/ipv4/conf/all/rp_filter", "1");
    let server = lab.at_router(|| UdpSocket::bind((INTERNET[0], 51820)).unwrap());
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Mark, &MARK).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let replies = || {
        client.send_to(b"x", (INTERNET[0], 51820)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(b"y", from).unwrap();
        client.recv_from(&mut [0; 8]).is_ok()
    };
    assert!(replies());
    apply(&policy());
    assert_eq!(std::fs::read("/proc/sys/net/ipv4/conf/all/src_valid_mark").unwrap(), b"1\n");
    assert!(!replies());
    run("nft add table inet t");
    run("nft add chain inet t pre { type filter hook prerouting priority -150; }");
    run("nft add rule inet t pre ip saddr 198.51.100.9 udp sport 51820 meta mark set 0x6b73");
    assert!(replies());
    sysctl("net/ipv4/conf/all/src_valid_mark", "0");
    assert!(!replies());
}

fn ntp_server_only() {
    let lab = Lab::new();
    apply(&Policy { ntp: INTERNET.iter().map(|to| to.parse().unwrap()).collect(), ..policy() });
    for to in INTERNET {
        assert!(lab.reaches(Kind::Udp, to, 123, How::Plain), "{to}");
        assert!(!lab.reaches(Kind::Udp, to, 124, How::Plain), "{to}");
        assert!(!lab.reaches(Kind::Tcp, to, 123, How::Plain), "{to}");
    }
    assert!(!lab.reaches(Kind::Udp, LAN[0], 123, How::Plain));
}

fn dhcp_renewal_only() {
    let lab = Lab::new();
    apply(&policy());
    assert!(!lab.reaches(Kind::Udp, LAN[0], 67, How::From(68)));
    apply(&Policy { dhcp: true, ..policy() });
    assert!(lab.reaches(Kind::Udp, LAN[0], 67, How::From(68)));
    assert!(!lab.reaches(Kind::Udp, LAN[0], 67, How::From(1068)));
    assert!(!lab.reaches(Kind::Udp, INTERNET[0], 67, How::From(68)));
    // DHCPv6 needs no rule: the group's route is in table local.
    assert!(lab.reaches(Kind::Udp, "ff02::1:2", 547, How::Bound));
}

fn internal_bridge_and_nothing_else() {
    let lab = Lab::new();
    lab.pair("veth1", "guest");
    run("ip link add docker0 type bridge");
    run("ip link set veth1 master docker0");
    run("ip link set docker0 up");
    address("172.17.0.1/16", "docker0");
    address("fd17::1/64", "docker0");
    lab.at_router(|| {
        address("172.17.0.2/16", "guest");
        address("fd17::2/64", "guest");
    });
    run("ip route add 198.51.100.9/32 via 192.0.2.1");
    run("ip route add 2001:db8:9::9/128 via 2001:db8:1::1");
    let guests = ["172.17.0.2", "fd17::2"];
    let others = || INTERNET.into_iter().chain(LAN).chain([BEHIND]);
    let reaches = |to| lab.reaches(Kind::Tcp, to, 80, How::Plain);
    assert!(guests.into_iter().chain(others()).all(reaches));
    apply(&policy());
    assert!(!guests.into_iter().chain(others()).any(reaches));

    let internal = Policy { internal: [LinkPattern::Prefix("docker".into())].into(), ..policy() };
    assert_eq!(apply(&internal).degraded, Vec::<String>::new());
    assert!(run("ip -d link show docker0").contains("group 27507"));
    for to in guests {
        assert!(reaches(to), "{to}");
    }
    for to in others() {
        assert!(!reaches(to), "{to}");
    }
    assert!(!lab.reaches(Kind::Tcp, LAN[1], 80, How::Bound));

    // A link in a group of its own would pass: then the rule is left out.
    run("ip link set eth0 group 5");
    assert_eq!(apply(&internal).degraded.len(), 1);
    assert!(!guests.into_iter().chain(others()).any(reaches));
    run("ip link set eth0 group 0");
    apply(&internal);
    assert!(reaches(guests[0]));

    // A way out in the bridge: no more internal.
    run("ip link add out0 link eth0 type macvlan");
    run("ip link set out0 master docker0");
    let socket = Socket::open(Family::Route).unwrap();
    routing::group_internal_bridges(&socket, &internal).unwrap();
    assert!(!guests.into_iter().any(reaches));
    run("ip link del out0");
    routing::group_internal_bridges(&socket, &internal).unwrap();
    assert!(reaches(guests[0]));
    routing::remove().unwrap();
    assert!(run("ip -d link show docker0").contains("group default"));
}

/// As a DHCP client does after the lock.
fn routes_can_be_added_under_the_guard() {
    let lab = Lab::new();
    run("ip route del default");
    run("ip -6 route del default");
    for policy in [Policy::strictest(), policy()] {
        apply(&policy);
        run("ip route add default via 192.0.2.1 dev eth0");
        run("ip route add 198.51.100.0/24 via 192.0.2.1");
        run("ip -6 route add default via 2001:db8:1::1 dev eth0");
        for to in INTERNET.into_iter().chain(LAN) {
            for kind in KINDS {
                assert!(!lab.reaches(kind, to, 443, How::Plain), "{kind:?} {to}");
            }
        }
        run("ip route flush via 192.0.2.1");
        run("ip -6 route del default");
    }
}

fn the_router_can_resolve_us() {
    let lab = Lab::new();
    sysctl("net/ipv4/conf/all/rp_filter", "1");
    apply(&policy());
    lab.at_router(|| {
        run("ip neighbour flush all");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"x", "192.0.2.2:9").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(run("ip neighbour show 192.0.2.2").contains("lladdr"));
    });
}

/// The router plays a guest, too, and sends to the Internet through us.
fn forwarded_packets_are_refused() {
    let lab = Lab::new();
    lab.pair("veth1", "guest");
    address("172.17.0.1/16", "veth1");
    address("fd17::1/64", "veth1");
    sysctl("net/ipv4/ip_forward", "1");
    sysctl("net/ipv6/conf/all/forwarding", "1");
    let far = lab.at_router(|| {
        address("172.17.0.2/16", "guest");
        address("fd17::2/64", "guest");
        run("ip route add 198.51.100.0/24 via 172.17.0.1");
        run("ip -6 route add 2001:db8:9::/64 via fd17::1");
        nix::net::if_::if_nametoindex("far").unwrap() as usize
    });
    let passes = |to: &str, port: u16| {
        lab.arrived();
        lab.at_router(|| drop(attempt(Kind::Udp, to, port, How::Plain)));
        std::thread::sleep(Duration::from_millis(60));
        lab.arrived().contains(&(far, to.parse().unwrap()))
    };
    for to in ["198.51.100.77", "2001:db8:9::77"] {
        assert!(passes(to, 443), "{to}");
        let lan = vec!["192.0.2.0/24".parse().unwrap()];
        apply(&Policy { lan, dhcp: true, ..policy() });
        assert!(!passes(to, 443), "{to}");
        assert!(!passes(to, 53), "{to}");
        routing::remove().unwrap();
    }
}

/// What neither policy allows never passes while one replaces the other.
fn no_gap_between_two_policies() {
    let lab = Lab::new();
    let lan = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()];
    let policies = [
        Policy { mark: 77, dhcp: true, ..policy() },
        Policy { lan, ntp: [BEHIND.parse().unwrap()].into(), ..policy() },
        Policy::strictest(),
    ];
    apply(&policies[0]);
    let forbidden = [(INTERNET[0], 443), (INTERNET[1], 443), (LAN[0], 53), (LAN[1], 53)];
    let stop = AtomicBool::new(false);
    lab.arrived();
    let (offered, leaked) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let sockets =
                [UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap()];
            let mut offered = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for (to, port) in forbidden {
                    let socket = &sockets[usize::from(to.contains(':'))];
                    offered += 1;
                    if socket.send_to(b"x", (to, port)).is_ok() {
                        return (offered, Some(to));
                    }
                }
            }
            (offered, None)
        });
        for round in 1..=300 {
            apply(&policies[round % policies.len()]);
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    assert_eq!(leaked, None);
    assert!(offered > 1000, "{offered}");
    let seen = lab.arrived();
    assert!(!seen.iter().any(|(_, to)| INTERNET.contains(&to.to_string().as_str())), "{seen:?}");
}
