//! A clean machine gives no finding; each hole is found, by the probe that is made for it.

use std::sync::Mutex;

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Failed, Outcome, TOGETHER, Test, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Result};
use killswitch::netlink::{Family, Socket};
use killswitch::{netfilter, netlink, routing, ruleset};
use serde_json::Value;

use crate::common::{LockedLab, Seen};

pub const TESTS: &[Test] = &[
    ("a_clean_machine_holds", a_clean_machine_holds),
    ("an_open_machine_is_told_so_without_a_packet", an_open_machine_is_told_so_without_a_packet),
    ("each_hole_is_found_by_its_probe", each_hole_is_found_by_its_probe),
    ("a_missing_egress_guard_is_found", a_missing_egress_guard_is_found),
    ("a_link_without_a_guard_is_found", a_link_without_a_guard_is_found),
    ("what_is_forwarded_is_found", what_is_forwarded_is_found),
    (
        "a_link_that_takes_the_tunnels_name_is_watched",
        a_link_that_takes_the_tunnels_name_is_watched,
    ),
    ("what_the_configuration_allows_is_no_leak", what_the_configuration_allows_is_no_leak),
    ("a_damaged_lock_is_never_held", a_damaged_lock_is_never_held),
    ("a_link_that_comes_later_is_watched", a_link_that_comes_later_is_watched),
    ("a_frame_on_pages_is_seen", a_frame_on_pages_is_seen),
    ("without_a_link_nothing_is_proven", without_a_link_nothing_is_proven),
    ("without_a_configuration_nothing_is_judged", without_a_configuration_nothing_is_judged),
    ("links_that_are_not_tried_are_owned_up_to", links_that_are_not_tried_are_owned_up_to),
];

/// What `leaktest --json` said.
pub struct Said {
    pub code: i32,
    pub json: Value,
    pub err: String,
}

impl Said {
    pub fn of(locked: &LockedLab, arguments: &[&str]) -> std::result::Result<Self, Failed> {
        let output = locked.killswitch(&[&["--json", "leaktest"], arguments].concat())?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = serde_json::from_slice(&output.stdout).map_err(|it| format!("{it}: {err}"))?;
        Ok(Said { code: output.status.code().unwrap_or(-1), json, err })
    }

    pub fn probe(&self, name: &str) -> &Value {
        let probes = self.json["probes"].as_array().expect("probes");
        probes.iter().find(|it| it["name"] == name).unwrap_or(&Value::Null)
    }

    /// What each probe said, for a test that fails.
    pub fn in_words(&self) -> String {
        let mut text = format!("{}: {}\n", self.code, self.json["summary"]);
        for probe in self.json["probes"].as_array().into_iter().flatten() {
            let keys = ["name", "verdict", "sent", "refused", "tunnelled", "leaked", "reason"];
            let words = keys.map(|key| probe[key].to_string());
            text += &format!("{} {}\n", words.join(" "), probe["frames"][0]);
        }
        format!("{text}{}\n{}\n{}", self.json["limits"], self.json["machine"], self.err)
    }

    /// Names of probes with this verdict.
    pub fn with(&self, verdict: &str) -> Vec<&str> {
        let probes = self.json["probes"].as_array().into_iter().flatten();
        let those = probes.filter(|it| it["verdict"] == verdict);
        those.filter_map(|it| it["name"].as_str()).collect()
    }
}

/// What it said, and what left the machine meanwhile.
fn watched(locked: &LockedLab) -> std::result::Result<(Said, Seen), Failed> {
    let mut said = None;
    let seen = locked.during(|_| {
        said = Some(Said::of(locked, &[]));
        Ok(())
    })?;
    Ok((said.expect("it ran")?, seen))
}

fn a_clean_machine_holds() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    let (said, seen) = watched(&locked)?;
    assert_eq!(said.code, 0, "{}", said.in_words());
    assert_eq!(said.json["verdict"], "held");
    seen.must_be_clean()?;
    assert!(!seen.holds(b"killswitch-leaktest"), "a canary left");
    let rules = locked.config().with_file_name("rules");
    let printed = locked.killswitch(&["rules"])?.stdout;
    std::fs::write(&rules, printed)?;
    let hash = locked.lab.client.command("sha256sum", &[rules.to_str().expect("a path")])?;
    let hash = hash.split(' ').next();
    assert_eq!(said.json["machine"]["ruleset_sha256"].as_str(), hash);
    let text = said.json.to_string();
    let key = std::fs::read_to_string(locked.config().with_file_name("private.key"))?;
    assert!(!text.contains(key.trim()), "the private key is in the report");
    Ok(())
}

fn an_open_machine_is_told_so_without_a_packet() -> Outcome {
    let locked = LockedLab::new()?;
    let (said, seen) = watched(&locked)?;
    assert_eq!(said.code, 20, "{}", said.in_words());
    assert_eq!(
        (&said.json["verdict"], &said.json["machine"]["state"]),
        (&"leaked".into(), &"open".into())
    );
    assert!(!seen.holds(b"killswitch-leaktest"), "a canary was sent");
    Ok(())
}

/// A rule before all others of what may leave, in nft's words, and the probes that find it.
type Hole = (&'static str, &'static [&'static str]);

const HOLES: &[Hole] = &[
    ("udp dport 443 accept", &["quic", "server-udp"]),
    ("udp dport 4433 udp sport 40000 accept", &["raw-ip"]),
    ("udp dport 4433 udp sport != 40000 accept", &["udp"]),
    ("udp dport 3478 accept", &["stun"]),
    ("udp dport 123 accept", &["ntp"]),
    ("tcp dport 443 ip daddr 198.18.0.0/15 accept", &["tcp"]),
    ("tcp dport 80 accept", &["bound-tcp"]),
    ("icmp type echo-request accept", &["icmp", "bound-icmp"]),
    ("meta nfproto ipv6 udp dport 4434 accept", &["ipv6-sources"]),
    ("ip6 daddr 2001:2::/48 udp dport 4435 accept", &["bound-udp"]),
    ("udp dport 53 accept", &["dns"]),
    ("tcp dport 853 accept", &["dot"]),
    ("udp dport 5353 accept", &["mdns"]),
    ("ip daddr 224.0.0.252 accept", &["llmnr"]),
    ("ip daddr 255.255.255.255 accept", &["broadcast"]),
    ("udp dport 51820 accept", &["server-udp"]),
    ("ip daddr 198.51.100.0/24 tcp dport 443 accept", &["server-tcp"]),
];

pub fn nft(locked: &LockedLab, words: &str) -> Result<()> {
    let arguments: Vec<&str> = ["60", "nft"].into_iter().chain(words.split(' ')).collect();
    locked.lab.client.command("timeout", &arguments).map(drop)
}

/// Nothing but table `inet` is left, so that a hole in it is one.
fn leave_the_table_alone(locked: &LockedLab) -> Result<()> {
    locked.lock()?;
    nft(locked, "delete table netdev killswitch")?;
    locked.lab.client.run(|| routing::remove().map(drop).during("routing guard"))?
}

fn each_hole_is_found_by_its_probe() -> Outcome {
    let holes = Mutex::new(HOLES.iter());
    let next = || holes.lock().expect("nobody panics with it").next();
    let dig = || -> Outcome {
        let locked = LockedLab::new()?;
        while let Some((rule, probes)) = next() {
            leave_the_table_alone(&locked)?;
            nft(&locked, &format!("insert rule inet killswitch leave {rule}"))?;
            let said = Said::of(&locked, &[])?;
            // Without the egress guard packet sockets get out, too.
            let mut found = said.with("leaked");
            found.retain(|it| !it.starts_with("packet-socket"));
            assert_eq!((said.code, &found[..]), (20, *probes), "{rule}\n{}", said.in_words());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let diggers: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(dig)).collect();
        // The panic's message has been printed.
        diggers.into_iter().try_for_each(|it| it.join().map_err(|_| "a hole is not found")?)
    })
}

fn a_missing_egress_guard_is_found() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    nft(&locked, "delete table netdev killswitch")?;
    let said = Said::of(&locked, &[])?;
    let found = said.with("leaked");
    assert_eq!(found, ["packet-socket", "packet-socket-vlan"], "{}", said.in_words());
    let frame = &said.probe("packet-socket")["frames"][0];
    assert_eq!(frame["link"], CLIENT_LINK, "{frame}");
    assert!(frame["what"].as_str().is_some_and(|it| it.starts_with("udp 192.168.1.50:40000")));
    Ok(())
}

fn a_link_without_a_guard_is_found() -> Outcome {
    let locked = LockedLab::new()?;
    let (client, trap) = (&locked.lab.client, locked.lab.trap.path());
    client.ip(&format!(
        "link add eth1 index 77 type veth peer name trap netns {trap}\nlink set eth1 up"
    ))?;
    locked.lab.trap.ip("link set trap up")?;
    locked.lock()?;
    let policy = locked.policy()?;
    nft(&locked, "delete table netdev killswitch")?;
    client.run(|| -> Result<()> {
        let route = Socket::open(Family::Route).during("rtnetlink")?;
        let mut links = netfilter::guarded(&policy, &netlink::links(&route).during("links")?);
        links.retain(|it| it.name != "eth1");
        let guard = ruleset::guard(&policy, Some(&netfilter::references(&links)));
        let tables = Socket::open(Family::Netfilter).during("nfnetlink")?;
        netfilter::apply(&tables, &guard).map(drop).during("the guard")
    })??;
    let said = Said::of(&locked, &[])?;
    let found = said.with("leaked");
    assert_eq!(found, ["packet-socket", "packet-socket-vlan"], "{}", said.in_words());
    let frames = said.probe("packet-socket")["frames"].as_array().cloned().unwrap_or_default();
    assert!(!frames.is_empty() && frames.iter().all(|it| it["link"] == "eth1"), "{frames:?}");
    Ok(())
}

fn what_is_forwarded_is_found() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lab.client.sysctl("net/ipv4/ip_forward", "1")?;
    locked.lab.client.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    locked.lock()?;
    let said = Said::of(&locked, &[])?;
    assert_eq!(
        (said.code, &said.probe("forwarded")["verdict"]),
        (0, &"held".into()),
        "{}",
        said.in_words()
    );
    leave_the_table_alone(&locked)?;
    nft(&locked, "insert rule inet killswitch forward accept")?;
    nft(&locked, "insert rule inet killswitch leave ip saddr 198.19.255.254 accept")?;
    let said = Said::of(&locked, &[])?;
    assert_eq!(said.probe("forwarded")["verdict"], "leaked", "{}", said.in_words());
    let links = locked.lab.client.command("ip", &["link"])?;
    assert!(!links.contains("kslt"), "the guest's link is left: {links}");
    Ok(())
}

fn a_link_that_takes_the_tunnels_name_is_watched() -> Outcome {
    let locked = LockedLab::new()?;
    let (client, trap) = (&locked.lab.client, locked.lab.trap.path());
    client.ip(&format!(
        "link add {TUNNEL_LINK} index 77 type veth peer name trap netns {trap}
         address add 10.99.0.1/24 dev {TUNNEL_LINK}
         link set {TUNNEL_LINK} up"
    ))?;
    locked.lab.trap.ip("link set trap up")?;
    locked.lock()?;
    let said = Said::of(&locked, &[])?;
    assert_eq!(said.with("leaked"), Vec::<&str>::new(), "{}", said.in_words());
    leave_the_table_alone(&locked)?;
    nft(&locked, &format!("insert rule inet killswitch leave oifname {TUNNEL_LINK} accept"))?;
    let said = Said::of(&locked, &[])?;
    let frames = said.probe("broadcast")["frames"].as_array().cloned().unwrap_or_default();
    assert!(frames.iter().any(|it| it["link"] == TUNNEL_LINK), "{}", said.in_words());
    Ok(())
}

fn what_the_configuration_allows_is_no_leak() -> Outcome {
    let locked = LockedLab::with(&format!(
        "[allow]\nlan = [\"{LAN_V4}\", \"198.18.0.0/15\"]\nlan_dns = [\"{ROUTER_V4}\"]\n"
    ))?;
    locked.lock()?;
    let said = Said::of(&locked, &[])?;
    assert_eq!((said.code, said.with("leaked")), (0, vec![]), "{}", said.in_words());
    assert_eq!(said.probe("dns")["reason"], "allow.lan_dns", "{}", said.in_words());
    assert_eq!(said.probe("packet-socket")["reason"], "allow.lan", "{}", said.in_words());
    assert_eq!(said.probe("mdns")["verdict"], "held", "{}", said.in_words());
    Ok(())
}

/// A hole that no probe goes through is no proof that there is none.
fn a_damaged_lock_is_never_held() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    nft(&locked, "insert rule inet killswitch leave udp dport 4999 accept")?;
    let said = Said::of(&locked, &[])?;
    assert_eq!((said.code, said.with("leaked")), (30, vec![]), "{}", said.in_words());
    assert_eq!(said.json["verdict"], "cannot_tell");
    Ok(())
}

/// What another program sends by it counts, too.
fn a_link_that_comes_later_is_watched() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    nft(&locked, "delete table netdev killswitch")?;
    let (client, trap) = (&locked.lab.client, locked.lab.trap.path());
    let said = while_it_runs(&locked, || {
        client.ip(&format!(
            "link add late index 78 type veth peer name trap netns {trap}\nlink set late up"
        ))?;
        locked.lab.trap.ip("link set trap up")?;
        let socket = PacketSocket::open(client, "late")?;
        let frame = [&[0xff; 6][..], &socket.address(), &[0x88, 0xb5], &[0; 46]].concat();
        Ok((socket, frame))
    })?;
    let everything = said.probe("everything-else");
    assert_eq!(everything["verdict"], "leaked", "{}", said.in_words());
    let frame = &everything["frames"][0];
    let wanted = ("late".into(), "frame of type 0x88b5".into());
    assert_eq!((frame["link"].clone(), frame["what"].clone()), wanted, "{}", said.in_words());
    Ok(())
}

/// Sends a frame, made when it captures, again and again while the test runs.
fn while_it_runs(
    locked: &LockedLab,
    make: impl FnOnce() -> Result<(PacketSocket, Vec<u8>)>,
) -> std::result::Result<Said, Failed> {
    std::thread::scope(|scope| {
        let said = scope.spawn(|| Said::of(locked, &["--for", "5s"]));
        eventually("the test captures", || {
            let sockets = locked.lab.client.command("cat", &["/proc/net/packet"])?;
            Ok(sockets.lines().count() > 1)
        })?;
        let (socket, frame) = make()?;
        while !said.is_finished() {
            // The link may not be up yet.
            let _ = socket.send(&frame);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        said.join().map_err(|_| "the test panicked")?
    })
}

/// Of a frame of a page or more only Ethernet's header is in the kernel's linear buffer, where filters
/// that look by SKF_NET_OFF see no more of it before Linux 6.16.
fn a_frame_on_pages_is_seen() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    nft(&locked, "delete table netdev killswitch")?;
    let client = &locked.lab.client;
    client.ip(&format!("link set {CLIENT_LINK} mtu 9000"))?;
    let said = while_it_runs(&locked, || {
        let socket = PacketSocket::open(client, CLIENT_LINK)?;
        let header = [&[0xff; 6][..], &socket.address(), &[8, 0]].concat();
        let packet = [0x45, 0, 0x1f, 0x40, 0, 0, 0, 0, 64, 253, 0, 0, 192, 168, 1, 50, 1, 1, 1, 1];
        Ok((socket, [&header[..], &packet, &[0; 7980]].concat()))
    })?;
    let frame = &said.probe("everything-else")["frames"][0];
    assert_eq!(frame["what"], "ip protocol 253 192.168.1.50 -> 1.1.1.1", "{}", said.in_words());
    assert_eq!(frame["length"], 8014);
    Ok(())
}

fn without_a_link_nothing_is_proven() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    locked.lab.client.ip(&format!("link set {CLIENT_LINK} down"))?;
    let said = Said::of(&locked, &[])?;
    assert_eq!((said.code, said.with("leaked")), (30, vec![]), "{}", said.in_words());
    let summary = said.json["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("no link to a network is up"), "{summary}");
    Ok(())
}

/// By the strictest lock all that the old one allows would be a leak.
fn without_a_configuration_nothing_is_judged() -> Outcome {
    let locked = LockedLab::new()?;
    locked.lock()?;
    locked.write("killswitch.toml", "what is this")?;
    let output = locked.killswitch(&["leaktest"])?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains("judges by the configuration"), "{words}");
    Ok(())
}

fn links_that_are_not_tried_are_owned_up_to() -> Outcome {
    let locked = LockedLab::new()?;
    let trap = locked.lab.trap.path();
    for number in 1..=17 {
        locked.lab.client.ip(&format!(
            "link add more{number} type veth peer name far{number} netns {trap}
             link set more{number} up"
        ))?;
    }
    locked.lock()?;
    let said = Said::of(&locked, &[])?;
    let limits = said.json["limits"].to_string();
    assert!(limits.contains("nothing was sent by 2 of 18 links"), "{limits}");
    Ok(())
}
