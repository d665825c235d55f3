//! Local senders of every kind: threats 1 to 7, 10 and 11.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::host::Process;
use killswitch::lab::{Capture, Context, Error, Host, Lab, Result};

use crate::common::{LockedLab, Seen, canary};

const SEND: &str = include_str!("send.py");
const PROBE: &str = include_str!("probe.py");
const XDP: &str = include_str!("xdp.py");

/// A kind of `send.py`, and the class of the leak where the packet has no room for a canary.
pub type Sender = (&'static str, Option<&'static str>);

pub const PACKET_SOCKETS: [Sender; 12] = [
    ("packet_udp", None),
    ("packet_udp6", None),
    ("packet_bypass", None),
    ("packet_vlan", None),
    ("packet_two_vlans", None),
    ("packet_vlan_like_arp", None),
    ("packet_unknown_type", None),
    ("packet_802_3", None),
    ("packet_dgram", None),
    ("packet_like_server", None),
    ("packet_fragment", None),
    ("router_advertisement", None),
];

/// Packet sockets that tell the kernel another type than the frame's own.
pub const DISGUISED: [Sender; 7] = [
    ("packet_ip_as_arp", None),
    ("packet_ip6_as_arp", None),
    ("packet_ip_as_8021x", None),
    ("packet_tagged_as_arp", None),
    ("packet_ip6_as_ip_to_the_lan", None),
    ("packet_tagged_as_ip_to_the_lan", None),
    ("packet_tagged_arp_for_the_tunnel", None),
];

pub const SOCKETS: [Sender; 51] = [
    ("udp4", None),
    ("udp6", None),
    ("dns4", None),
    ("udp4_bound", None),
    ("udp6_bound", None),
    ("udp4_unicast_if", None),
    ("udp6_unicast_if", None),
    ("udp4_pktinfo", None),
    ("udp6_pktinfo", None),
    ("udp4_transparent", None),
    ("udp6_transparent", None),
    ("udp4_source_route", None),
    ("udp4_fragments", None),
    ("udp6_fragments", None),
    ("udp4_segments", None),
    ("udp4_corked", None),
    ("udplite4", None),
    ("udp4_mark_elsewhere", None),
    ("udp4_clear_to_server", None),
    ("udp4_to_neighbour", None),
    ("dns4_of_the_router", None),
    ("tcp4", Some("-> 1.1.1.1:7001")),
    ("tcp6", Some("-> [2606:4700:4700::1111]:7002")),
    ("tcp4_bound", Some("-> 1.1.1.1:7003")),
    ("tcp6_bound", Some("-> [2606:4700:4700::1111]:7004")),
    ("mptcp4", Some("-> 1.1.1.1:7005")),
    ("tcp4_fast_open", Some("-> 1.1.1.1:7006")),
    ("ping4", None),
    ("ping6", None),
    ("icmp4_raw", None),
    ("icmp6_raw", None),
    ("router_advertisement", None),
    ("header4", None),
    ("header4_spoofed", None),
    ("header4_from_tunnel", None),
    ("header4_like_server", None),
    ("header6_spoofed", None),
    ("gre4", None),
    ("esp4", None),
    ("ah4", None),
    ("ipip4", None),
    ("sit4", None),
    ("sctp4", None),
    ("ospf4", None),
    ("gre6", None),
    ("unknown6", None),
    ("multicast4", None),
    ("mdns4", None),
    ("mdns6", None),
    ("broadcast4", None),
    ("broadcast4_net", None),
];

/// Sends by `send.py` in the client.
pub fn send(lab: &Lab, senders: &[Sender]) -> Result<()> {
    send_from(&lab.client, CLIENT_LINK, senders)
}

/// Sends by `send.py`.
pub fn send_from(host: &Host, link: &str, senders: &[Sender]) -> Result<()> {
    let mut arguments = vec!["-", link];
    arguments.extend(senders.iter().map(|(kind, _)| kind));
    host.feed("python3", &arguments, SEND)
}

/// Provokes the client by `probe.py` from the router.
pub fn probe(lab: &Lab, v4: &str, v6: &str, kinds: &[&str]) -> Result<()> {
    let mut arguments = vec!["-", LAN_LINK, v4, v6];
    arguments.extend(kinds);
    lab.router.feed("python3", &arguments, PROBE)
}

/// Every one of the senders must have been seen.
pub fn all_leaked(seen: &Seen, senders: &[Sender]) -> Result<()> {
    let silent = |(kind, class): &&Sender| seen.must_show(class.unwrap_or(kind)).is_err();
    let silent: Vec<_> = senders.iter().filter(silent).map(|(kind, _)| *kind).collect();
    match silent.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!("not seen on the wire: {}", silent.join(", ")))),
    }
}

fn stopped(it: &LockedLab, senders: &[Sender]) -> Outcome {
    all_leaked(&it.during(|lab| send(lab, senders))?, senders)?;
    it.lock()?;
    it.during(|lab| send(lab, senders))?.must_be_clean()?;
    Ok(())
}

pub fn t01_packet_socket() -> Outcome {
    stopped(&LockedLab::new()?, &PACKET_SOCKETS)
}

pub fn t69_packet_socket_in_disguise() -> Outcome {
    let it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\"]\n")?;
    let act = |lab: &Lab| send(lab, &DISGUISED);
    all_leaked(&it.during(act)?, &DISGUISED)?;
    it.lock()?;
    it.during(act)?.must_be_clean()?;
    Ok(())
}

/// A link without an Ethernet header, as of mobile networks, has nothing that says the frame's type.
pub fn t69_packet_socket_on_a_link_without_ethernet() -> Outcome {
    const LINK: &str = "wwan0";
    let senders = ["packet_ip6_as_ip_without_ethernet", "packet_ip_as_ip6_without_ethernet"];
    let it = LockedLab::with(&format!("[allow]\nlan = [\"{LAN_V4}\", \"{LAN_V6}\"]\n"))?;
    let file = it.write("wwan", "")?;
    let name = file.to_str().ok_or_else(|| Error::new("a path that is not text"))?;
    let _link = start(&it.lab.client, &["-c", include_str!("tun.py"), LINK, name])?;
    it.lab.client.ip(&format!("address add 100.70.0.2/32 dev {LINK}\nlink set {LINK} up"))?;
    let seen = || {
        send_from(&it.lab.client, LINK, &senders.map(|sender| (sender, None)))?;
        let bytes = std::fs::read(&file).during(name)?;
        Ok::<_, Error>(senders.map(|sender| {
            let canary = canary(sender);
            bytes.windows(canary.len()).any(|part| part == canary)
        }))
    };
    eventually("both at the link's far end", || Ok(seen()? == [true; 2]))?;
    it.lock()?;
    it.write("wwan", "")?;
    it.flush()?;
    assert_eq!(seen()?, [false; 2]);
    Ok(())
}

/// A limit: of a frame whose checksum is left to the link, two bytes are written behind the guard,
/// wherever the sender says. It needs CAP_NET_RAW.
pub fn t70_checksum_rewrites_the_address_in_spite_of_the_lock() -> Outcome {
    let it = LockedLab::new()?;
    it.lock()?;
    let seen = it.during(|lab| send(lab, &[("packet_checksum_over_address", None)]))?;
    match seen.has_leak("1.1.9.9") {
        true => Ok(()),
        false => Err(seen.report.summary(20).into()),
    }
}

/// The mark opens the servers' ports to WireGuard's messages, no more.
pub fn t01_marked_packet_socket_to_a_server() -> Outcome {
    let it = LockedLab::new()?;
    let marked = |lab: &Lab| send(lab, &[("packet_marked_to_server", None)]);
    it.during(marked)?.must_show("packet_marked_to_server")?;
    it.lock()?;
    it.during(marked)?.must_be_clean()?;
    Ok(())
}

/// A limit: AF_XDP hands frames to the driver past every hook. It needs CAP_NET_RAW.
pub fn t02_af_xdp_leaks_in_spite_of_the_lock() -> Outcome {
    let it = LockedLab::new()?;
    let xdp = |lab: &Lab| lab.client.feed("python3", &["-", CLIENT_LINK], XDP);
    it.during(xdp)?.must_show("xdp")?;
    it.lock()?;
    it.during(xdp)?.must_show("xdp")?;
    Ok(())
}

/// A limit: mirred hands frames to the driver past the egress hook. It needs CAP_NET_ADMIN.
pub fn t03_mirred_leaks_in_spite_of_the_lock() -> Outcome {
    let senders = [("loopback4", None)];
    for side in ["ingress", "egress"] {
        let it = LockedLab::new()?;
        it.during(|lab| send(lab, &senders))?.must_be_silent_of("loopback4")?;
        it.lab.client.command("tc", &["qdisc", "add", "dev", "lo", "clsact"])?;
        let filter = format!(
            "filter add dev lo {side} protocol ip u32 match u32 0 0 \
             action mirred egress redirect dev {CLIENT_LINK}"
        );
        it.lab.client.command("tc", &filter.split_whitespace().collect::<Vec<_>>())?;
        it.during(|lab| send(lab, &senders))?.must_show("loopback4")?;
        it.lock()?;
        it.during(|lab| send(lab, &senders))?.must_show("loopback4")?;
    }
    Ok(())
}

pub fn t04_foreign_netdev_chain_forwards_to_the_link() -> Outcome {
    let senders = [("loopback4", None)];
    let it = LockedLab::new()?;
    let rules = format!(
        "table netdev foreign {{
            chain thief {{
                type filter hook ingress device lo priority 0
                fwd to {CLIENT_LINK}
            }}
        }}"
    );
    it.lab.client.feed("nft", &["-f", "-"], &rules)?;
    it.during(|lab| send(lab, &senders))?.must_show("loopback4")?;
    it.lock()?;
    it.during(|lab| send(lab, &senders))?.must_be_clean()?;
    Ok(())
}

pub fn t05_every_socket() -> Outcome {
    stopped(&LockedLab::new()?, &SOCKETS)
}

pub fn t05_every_socket_by_the_table_alone() -> Outcome {
    stopped(&LockedLab::table_alone("")?, &SOCKETS)
}

/// Holds TCP port 8000 open and a multicast group joined.
const SERVE: &str = "
import socket, time
server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind(('::', 8000))
server.listen()
group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
    socket.inet_aton('239.7.7.7') + socket.inet_aton('192.168.1.50'))
print('ready', flush=True)
time.sleep(3600)
";

/// Starts [`SERVE`] in the client and waits until it does.
pub fn serve(lab: &Lab) -> Result<Process> {
    start(&lab.client, &["-c", SERVE])
}

/// Starts a program of python's and waits until it prints "ready".
pub fn start(host: &Host, arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new("python3");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = host.start(command)?;
    let mut line = String::new();
    let output = process.child().stdout.take().ok_or_else(|| Error::new("no output"))?;
    BufReader::new(output).read_line(&mut line).during("python3")?;
    match line.trim() {
        "ready" => Ok(process),
        other => Err(Error::new(format!("python3: {other:?}"))),
    }
}

pub fn t06_answers_of_the_kernel() -> Outcome {
    answers_are_stopped(&LockedLab::new()?)
}

pub fn t06_answers_of_the_kernel_by_the_table_alone() -> Outcome {
    answers_are_stopped(&LockedLab::table_alone("")?)
}

fn answers_are_stopped(it: &LockedLab) -> Outcome {
    const ANSWERS: [(&str, &str); 14] = [
        ("echo4", "ICMP type 0 192.168.1.50"),
        ("echo6", "ICMPv6 type 129 2001:db8:1::50"),
        ("open4", "TCP SYN+ACK 192.168.1.50"),
        ("open6", "TCP SYN+ACK 2001:db8:1::50"),
        ("closed4", "TCP ACK+RST 192.168.1.50"),
        ("closed6", "TCP ACK+RST 2001:db8:1::50"),
        ("udp4", "ICMP type 3 192.168.1.50"),
        ("protocol4", "ICMP type 3 192.168.1.50"),
        ("udp6", "ICMPv6 type 1 2001:db8:1::50"),
        ("timestamp4", "ICMP type 14 192.168.1.50"),
        ("option4", "ICMP type 12 192.168.1.50"),
        ("option6", "ICMPv6 type 4 2001:db8:1::50"),
        ("igmp", "IP protocol 2 192.168.1.50"),
        ("mld", "IPv6 extension header 0 fe80::"),
    ];
    it.lab.client.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    it.lab.client.sysctl("net/ipv6/icmp/ratelimit", "0")?;
    let _service = serve(&it.lab)?;
    let (v4, v6) = (CLIENT_V4.to_string(), CLIENT_V6.to_string());
    for (kind, class) in ANSWERS {
        it.until_shown(class, |lab| probe(lab, &v4, &v6, &[kind]))?;
    }
    it.lock()?;
    let kinds = ANSWERS.map(|(kind, _)| kind);
    it.during(|lab| probe(lab, &v4, &v6, &kinds))?.must_be_clean()?;
    Ok(())
}

/// ARP must run for a link to work at all; the strictest lock stops it too.
pub fn t07_arp() -> Outcome {
    let it = LockedLab::new()?;
    let arp = |lab: &Lab| {
        let router = ROUTER_V4.to_string();
        lab.client.command("ip", &["neigh", "flush", "all"])?;
        // In the background: with the lock it has no answer to wait for.
        lab.client.output("ping", &["-c1", "-W1", &router]).map(drop)
    };
    let asks = |seen: &Seen| seen.report.allowed.contains_key("ARP");
    if !asks(&it.during(arp)?) {
        return Err("ARP was not seen without the lock".into());
    }
    it.write("killswitch.toml", "this is no configuration")?;
    let output = it.killswitch(&["lock", "--boot"])?;
    assert_eq!(output.status.code(), Some(78));
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    arp(&it.lab)?;
    it.lab.client.output("ping", &["-c1", "-W1", &NEIGHBOUR_V4.to_string()])?;
    let report = capture.report();
    if report.allowed_total() + report.leaked_total() > 0 {
        return Err(format!("{:?} {}", report.allowed, report.summary(20)).into());
    }
    // The same capture sees the same again once the lock is off.
    it.unlock()?;
    arp(&it.lab)?;
    eventually("ARP is seen after unlocking", || Ok(capture.report().allowed.contains_key("ARP")))?;
    Ok(())
}

/// The inner packet is to a LAN that is allowed, so only its wrapping is left to be stopped.
/// This kernel has vxlan alone; ipip, gre, sit and geneve wait for virtual machines.
pub fn t10_vxlan() -> Outcome {
    let senders = [("inner4", None)];
    let mut it = LockedLab::with("[allow]\nlan = [\"10.200.0.0/24\"]\n")?;
    it.expectation.lan = vec!["10.200.0.0/24".parse().during("a network")?];
    it.lab.client.ip(&format!(
        "link add vx0 type vxlan id 7 remote {INTERNET_V4} dstport 4789 dev {CLIENT_LINK}
         address add 10.200.0.1/24 dev vx0
         link set vx0 up
         neigh add 10.200.0.2 lladdr 02:00:00:00:00:99 dev vx0"
    ))?;
    let sent = |it: &LockedLab| -> Result<u64> {
        let all = it.lab.client.command("ip", &["-j", "-s", "link", "show", "vx0"])?;
        let links: serde_json::Value = serde_json::from_str(&all).during("ip -j")?;
        // What its outer packet could not leave for is an error of the link.
        let of = |what: &str| links[0]["stats64"]["tx"][what].as_u64().unwrap_or(0);
        Ok(of("packets") + of("errors") + of("dropped"))
    };
    let seen = it.during(|lab| send(lab, &senders))?;
    seen.must_show("inner4")?;
    if !seen.has_leak(&format!("-> {INTERNET_V4}:4789")) {
        return Err(format!("no vxlan: {}", seen.report.summary(20)).into());
    }
    it.lock()?;
    let before = sent(&it)?;
    it.during(|lab| send(lab, &senders))?.must_be_clean()?;
    if sent(&it)? == before {
        return Err("the inner packet did not come as far as the vxlan link".into());
    }
    Ok(())
}

/// A refusal is for the local program: told to a spoofed source, it would be on the wire.
pub fn t11_reject_stays_here() -> Outcome {
    const SPOOFED: [Sender; 3] =
        [("syn4_spoofed", None), ("udp4_spoofed", None), ("udp6_spoofed", None)];
    const TOLD: [&str; 3] = ["TCP ACK+RST", "ICMP type 3", "ICMPv6 type 1"];
    let it = LockedLab::new()?;
    let naive = format!(
        "table inet naive {{
            chain output {{
                type filter hook output priority 0
                oifname {CLIENT_LINK} tcp dport 7007 reject with tcp reset
                oifname {CLIENT_LINK} udp dport 7008 reject
            }}
        }}"
    );
    it.lab.client.feed("nft", &["-f", "-"], &naive)?;
    let seen = it.during(|lab| send(lab, &SPOOFED))?;
    for class in TOLD {
        seen.must_show(class)?;
    }
    it.lab.client.command("nft", &["delete", "table", "inet", "naive"])?;
    it.lock()?;
    it.during(|lab| send(lab, &SPOOFED))?.must_be_clean()?;
    Ok(())
}

/// With a plain drop a connection attempt waits; with the lock it ends at once.
pub fn t11_a_local_program_is_told_at_once() -> Outcome {
    let it = LockedLab::new()?;
    let try_for = |address: SocketAddr, patience: u64| {
        it.lab
            .client
            .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(patience)).err())
            .map(|error| error.map(|error| error.kind()))
    };
    let targets: [SocketAddr; 2] = [(INTERNET_V4, 443).into(), (INTERNET_V6, 443).into()];
    for target in targets {
        assert_eq!(try_for(target, 30)?, None, "connects without the lock");
    }
    let drop = "table inet naive { chain output {
        type filter hook output priority 0
        tcp dport 443 drop
    }
    }";
    it.lab.client.feed("nft", &["-f", "-"], drop)?;
    for target in targets {
        assert_eq!(try_for(target, 1)?, Some(ErrorKind::TimedOut), "a plain drop");
    }
    it.lab.client.command("nft", &["delete", "table", "inet", "naive"])?;
    it.lock()?;
    // Bound by nothing, it fails in routing; with the routing guard gone, in the table.
    for target in targets {
        let routed = try_for(target, 60)?;
        assert!(routed.is_some_and(|kind| kind != ErrorKind::TimedOut), "{routed:?}");
    }
    it.lab.client.run(killswitch::routing::remove)?.during("routing guard")?;
    for target in targets {
        assert_eq!(try_for(target, 60)?, Some(ErrorKind::ConnectionRefused), "{target}");
    }
    Ok(())
}
