//! Routes that lead past the tunnel, against each layer alone and against both.

use killswitch::lab::addresses::*;
use killswitch::lab::advertisement::{Advertiser, RaOptions};
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Error, Lab, Result, Wireguard};

use crate::common::LockedLab;
use crate::shot::{
    Shot, hold, hold_these, leak, naive_lock, no_naive_lock, pass, remove_routing_guard,
};

/// Which layers are left.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layers {
    Tables,
    Routing,
    Both,
}

const LAYERS: [Layers; 3] = [Layers::Tables, Layers::Routing, Layers::Both];

/// Locks, then takes away what is not to be tested.
fn lock_with(it: &LockedLab, layers: Layers) -> Result<()> {
    it.lock()?;
    match layers {
        Layers::Both => Ok(()),
        Layers::Tables => remove_routing_guard(&it.lab),
        Layers::Routing => {
            it.lab.client.command("timeout", &["20", "nft", "flush", "ruleset"]).map(drop)
        }
    }
}

fn hold_under(it: &LockedLab, layers: Layers, shots: &[Shot]) -> Result<()> {
    let held = match layers {
        // The kernel's own multicast reports ask no rule.
        Layers::Routing => hold_these(it, shots),
        Layers::Tables | Layers::Both => hold(it, shots),
    };
    held.map_err(|error| Error::new(format!("{layers:?}: {error}")))
}

/// As wg-quick(8) leads everything into the tunnel: unmarked packets to a table of its own, and
/// from table main no default route.
fn wg_quick(lab: &Lab) -> Result<()> {
    let mark = MARK.to_string();
    for family in ["-4", "-6"] {
        let add = |words: &[&str]| {
            let all: Vec<&str> = [&[family, "rule", "add"], words].concat();
            lab.client.command("ip", &all)
        };
        add(&["pref", "32001", "not", "fwmark", &mark, "lookup", &mark])?;
        add(&["pref", "32000", "lookup", "main", "suppress_prefixlength", "0"])?;
    }
    Ok(())
}

/// Locking takes foreign routes out of our table: the daemon's have `protocol kernel`.
fn tunnel_routes(lab: &Lab) -> Result<()> {
    lab.client.ip(&format!(
        "route replace default dev {TUNNEL_LINK} table {MARK} proto kernel
         route replace ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
    ))
}

fn pings(lab: &Lab, to: &str) -> Result<bool> {
    Ok(lab.client.output("ping", &["-c1", "-W2", to])?.status.success())
}

/// Against the idiom of wg-quick alone, then under each layer: first with the tunnel up, then
/// with it gone.
fn under_each_layer(attack: impl Fn(&Lab) -> Result<()>, shots: &[Shot]) -> Result<()> {
    for layers in LAYERS {
        let mut it = LockedLab::new()?;
        it.lab.start_server(0)?;
        let tunnel = it.lab.client_tunnel(0)?;
        wg_quick(&it.lab)?;
        eventually("the tunnel works", || pings(&it.lab, "9.9.9.9"))?;
        hold_these(&it, &unbound(shots))?;
        attack(&it.lab)?;
        leak(&it, shots)?;
        lock_with(&it, layers)?;
        tunnel_routes(&it.lab)?;
        hold_under(&it, layers, shots)?;
        if layers == Layers::Both {
            eventually("the tunnel works under the lock", || pings(&it.lab, "9.9.9.9"))?;
        }
        drop(tunnel);
        hold_under(&it, layers, shots)?;
    }
    Ok(())
}

/// Without the attack the idiom holds them, unless they choose their link themselves.
fn unbound(shots: &[Shot]) -> Vec<Shot> {
    shots.iter().filter(|shot| !shot.is_bound()).cloned().collect()
}

fn to_the_internet() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("udp4", "203.0.113.10:4433"),
        Shot::tcp("1.1.1.1:443"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("[2001:db8:ffff::10]:443"),
    ]
}

/// What a DHCP client makes of option 121 (RFC 3442): TunnelVision.
pub fn t45_rogue_routes_of_a_lease() -> Outcome {
    let halves = |lab: &Lab| {
        lab.client.ip("route add 0.0.0.0/1 via 192.168.1.1
             route add 128.0.0.0/1 via 192.168.1.1
             route add 2000::/4 via fe80::1 dev eth0")
    };
    under_each_layer(halves, &to_the_internet())?;
    let hosts = |lab: &Lab| {
        lab.client.ip("route add 1.1.1.1/32 via 192.168.1.1
             route add 203.0.113.0/24 via 192.168.1.1
             route add 2606:4700:4700::1111/128 via fe80::1 dev eth0
             route add 2001:db8:ffff::/64 via fe80::1 dev eth0")
    };
    under_each_layer(hosts, &to_the_internet())?;
    Ok(())
}

/// The same by a router's advertisement (RFC 4191), which the kernel itself obeys.
pub fn t45_rogue_routes_of_an_advertisement() -> Outcome {
    let shots =
        [Shot::udp("dns6", "[2606:4700:4700::1111]:53"), Shot::tcp("[2606:4700:4700::1111]:443")];
    for layers in LAYERS {
        let mut it = LockedLab::new()?;
        it.lab.start_server(0)?;
        let _tunnel = it.lab.client_tunnel(0)?;
        wg_quick(&it.lab)?;
        hold_these(&it, &shots)?;
        it.lab.client.sysctl("net/ipv6/conf/eth0/accept_ra", "2")?;
        it.lab.client.sysctl("net/ipv6/conf/eth0/accept_ra_rt_info_max_plen", "128")?;
        let rogue = || {
            let routes = vec![("2606:4700:4700::1111".parse()?, 128)];
            Ok::<_, std::net::AddrParseError>(RaOptions { routes, ..RaOptions::default() })
        };
        let _advertiser = Advertiser::start(&it.lab.router, rogue()?)?;
        let is_there = || {
            let routes = it.lab.client.command("ip", &["-6", "route"])?;
            Ok(routes.contains("2606:4700:4700::1111 "))
        };
        eventually("the advertised route", is_there)?;
        leak(&it, &shots)?;
        lock_with(&it, layers)?;
        tunnel_routes(&it.lab)?;
        hold_under(&it, layers, &shots)?;
        // Not because the route had gone: advertisements may come in.
        eventually("the advertised route is there still", is_there)?;
    }
    Ok(())
}

/// LocalNet: the access point says that the resolver is on the link.
fn localnet(lab: &Lab) -> Result<()> {
    lab.neighbour.ip("address add 1.1.1.1/24 dev eth0
         address add 2606:4700:4700::1111/64 dev eth0 nodad")?;
    lab.client.ip("address add 1.1.1.77/24 dev eth0
         address add 2606:4700:4700::77/64 dev eth0 nodad")?;
    eventually("the false resolver answers", || {
        let near = ["-c1", "-W1", "-I", CLIENT_LINK, "1.1.1.1"];
        let near6 = ["-c1", "-W1", "-I", CLIENT_LINK, "2606:4700:4700::1111"];
        let answers = |words: &[&str]| Ok(lab.client.output("ping", words)?.status.success());
        Ok(answers(&near)? && answers(&near6)?)
    })
}

fn to_the_false_resolver() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("udp4", "1.1.1.1:443"),
        Shot::tcp("1.1.1.1:443"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("[2606:4700:4700::1111]:443"),
    ]
}

pub fn t46_public_prefix_on_the_link() -> Outcome {
    under_each_layer(localnet, &to_the_false_resolver())?;
    // With a LAN exception for whatever is on the link it leaks; ours names the prefixes.
    let mut it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\"]\n")?;
    it.expectation.lan = vec!["192.168.1.0/24".parse()?];
    it.expectation.groups = true;
    localnet(&it.lab)?;
    naive_lock(
        &it.lab,
        0,
        "ip daddr { 192.168.1.0/24, 1.1.1.0/24 } accept; ip6 daddr 2606:4700:4700::/64 accept",
    )?;
    leak(&it, &to_the_false_resolver())?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold(&it, &to_the_false_resolver())?;
    Ok(())
}

pub fn t47_private_address_behind_the_gateway() -> Outcome {
    let shots = [
        Shot::udp("behind", "10.9.9.9:443"),
        Shot::udp("behind172", "172.20.0.9:443"),
        Shot::udp("other lan", "192.168.2.9:443"),
        Shot::tcp("10.9.9.9:80"),
        Shot::udp("behind6", "[fd00:99::9]:443"),
    ];
    for layers in LAYERS {
        let mut it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\", \"2001:db8:1::/64\"]\n")?;
        it.expectation.lan = vec!["192.168.1.0/24".parse()?, "2001:db8:1::/64".parse()?];
        it.expectation.groups = true;
        naive_lock(
            &it.lab,
            0,
            "ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } accept; \
             ip6 daddr fc00::/7 accept",
        )?;
        leak(&it, &shots)?;
        no_naive_lock(&it.lab)?;
        lock_with(&it, layers)?;
        hold_under(&it, layers, &shots)?;
    }
    Ok(())
}

/// Who allows all private prefixes still does not send to those behind the default gateway.
pub fn t47_wide_lan_stays_near() -> Outcome {
    let shots = [
        Shot::udp("behind", "172.20.0.9:443"),
        Shot::tcp("172.20.0.9:80"),
        Shot::udp("behind6", "[fd00:99::9]:443"),
    ];
    let more = "[allow]\nlan = [\"172.16.0.0/12\", \"192.168.0.0/16\", \"fd00:99::/32\"]\n";
    let mut it = LockedLab::with(more)?;
    it.expectation.lan = vec!["192.168.1.0/24".parse()?];
    it.expectation.groups = true;
    leak(&it, &shots)?;
    it.lock()?;
    hold(&it, &shots)?;
    pass(&it, &[Shot::udp("near", "192.168.1.20:9998")])?;
    // A limit: the tables cannot tell near from far, so an external tunnel, which has no routing
    // guard, sends to what its configuration names.
    remove_routing_guard(&it.lab)?;
    leak(&it, &shots)?;
    Ok(())
}

pub fn t48_names_are_not_asked_of_the_lan() -> Outcome {
    let shots = [
        Shot::udp("dns4", "192.168.1.1:53"),
        Shot::udp("dns6", "[2001:db8:1::1]:53"),
        Shot::tcp("192.168.1.1:53"),
        Shot::tcp("192.168.1.1:853"),
        Shot::tcp("[2001:db8:1::1]:853"),
        Shot::udp("doq", "192.168.1.1:853"),
        Shot::udp("mdns", "192.168.1.20:5353"),
        Shot::udp("llmnr", "192.168.1.20:5355"),
        Shot::udp("bound", "192.168.1.1:53").through(CLIENT_LINK),
    ];
    // Ports at which nobody answers: an answer to a closed socket would make the client object.
    let others =
        [Shot::udp("web4", "192.168.1.20:9998"), Shot::udp("web6", "[2001:db8:1::20]:9998")];
    for layers in LAYERS {
        let mut it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\", \"2001:db8:1::/64\"]\n")?;
        it.expectation.lan = vec!["192.168.1.0/24".parse()?, "2001:db8:1::/64".parse()?];
        it.expectation.groups = true;
        naive_lock(&it.lab, 0, "ip daddr 192.168.1.0/24 accept; ip6 daddr 2001:db8:1::/64 accept")?;
        leak(&it, &shots)?;
        no_naive_lock(&it.lab)?;
        lock_with(&it, layers)?;
        // A bound socket is not asked where it wants to go: the tables alone hold it.
        let held = if layers == Layers::Routing { unbound(&shots) } else { shots.to_vec() };
        hold_under(&it, layers, &held)?;
        pass(&it, &others)?;
    }
    Ok(())
}

/// The idioms of wg-quick, by themselves: a rule with suppress_prefixlength, and two routes of
/// length one. Both send in clear once the tunnel is gone, or its route.
pub fn t49_idioms_alone() -> Outcome {
    let shots = to_the_internet();
    for layers in LAYERS {
        let (it, tunnel) = with_two_halves()?;
        hold_these(&it, &shots)?;
        drop(tunnel);
        leak(&it, &shots)?;
        lock_with(&it, layers)?;
        hold_under(&it, layers, &shots)?;

        let mut it = LockedLab::new()?;
        it.lab.start_server(0)?;
        let tunnel = it.lab.client_tunnel(0)?;
        wg_quick(&it.lab)?;
        hold_these(&it, &shots)?;
        drop(tunnel);
        leak(&it, &shots)?;
        lock_with(&it, layers)?;
        hold_under(&it, layers, &shots)?;
    }
    Ok(())
}

fn with_two_halves() -> Result<(LockedLab, Wireguard)> {
    let mut it = LockedLab::new()?;
    it.lab.start_server(0)?;
    let tunnel = it.lab.client_tunnel(0)?;
    it.lab.client.ip(&format!(
        "route add {SERVER1_V4} via {ROUTER_V4}
         route add {SERVER2_V4} via {ROUTER_V4}
         route add 0.0.0.0/1 dev {TUNNEL_LINK}
         route add 128.0.0.0/1 dev {TUNNEL_LINK}
         route add 2000::/3 dev {TUNNEL_LINK} metric 1"
    ))?;
    Ok((it, tunnel))
}

/// Sockets that choose their link themselves; the last two ways need no privilege.
pub fn t50_sockets_that_choose_their_link() -> Outcome {
    let bound = [
        Shot::udp("bound4", "1.1.1.1:53").through(CLIENT_LINK),
        Shot::udp("bound6", "[2606:4700:4700::1111]:53").through(CLIENT_LINK),
        Shot::tcp("1.1.1.1:443").through(CLIENT_LINK),
        Shot::tcp("[2606:4700:4700::1111]:443").through(CLIENT_LINK),
    ];
    under_each_layer(|_| Ok(()), &bound)?;
    for layers in LAYERS {
        let mut it = LockedLab::new()?;
        it.lab.start_server(0)?;
        let _tunnel = it.lab.client_tunnel(0)?;
        wg_quick(&it.lab)?;
        let seen = it.during(choose_link)?;
        for name in CHOICES {
            seen.must_show(name)?;
        }
        lock_with(&it, layers)?;
        tunnel_routes(&it.lab)?;
        let seen = it.during(choose_link)?;
        match layers {
            Layers::Routing if CHOICES.iter().all(|name| seen.must_show(name).is_err()) => {}
            _ => seen.must_be_clean()?,
        }
    }
    Ok(())
}

const CHOICES: [&str; 4] = ["pktinfo4", "pktinfo6", "unicast_if4", "unicast_if6"];

/// There is no safe wrapper for these: Python sends.
fn choose_link(lab: &Lab) -> Result<()> {
    const SCRIPT: &str = "
import socket, struct
# include/uapi/linux: in.h, in6.h
IP_PKTINFO, IP_UNICAST_IF, IPV6_PKTINFO, IPV6_UNICAST_IF = 8, 50, 50, 76
index = socket.if_nametoindex('eth0')
def send(name, to, option=None, control=()):
    family = socket.AF_INET6 if ':' in to else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if option:
        sock.setsockopt(*option)
    for _ in range(3):
        try:
            sock.sendmsg([b'killswitch-canary:' + name + b';'], control, 0, (to, 443))
        except OSError:
            pass
v4, v6 = '1.1.1.1', '2606:4700:4700::1111'
IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
send(b'pktinfo4', v4, None, [(IP, IP_PKTINFO, struct.pack('i8x', index))])
send(b'pktinfo6', v6, None, [(IP6, IPV6_PKTINFO, struct.pack('16xi', index))])
send(b'unicast_if4', v4, (IP, IP_UNICAST_IF, struct.pack('!I', index)))
send(b'unicast_if6', v6, (IP6, IPV6_UNICAST_IF, struct.pack('!I', index)))
";
    lab.client.command("python3", &["-c", SCRIPT]).map(drop)
}
