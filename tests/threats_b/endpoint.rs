//! What looks like the tunnel's outer packets, and what other programs' chains make of a packet.

use base64ct::{Base64, Encoding};
use killswitch::lab::addresses::*;
use killswitch::lab::decoder::Server;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Lab, Result};

use crate::common::LockedLab;
use crate::shot::{Shot, hold, hold_layer_by_layer, leak, naive_lock, nft, no_naive_lock, pass};

const SERVER: &str = "198.51.100.7:51820";
const SERVER_V6: &str = "[2001:db8:a::7]:51820";
const THIRD: &str = "203.0.113.10:51820";

/// Ordinary traffic of any program.
fn ordinary() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::udp("quic4", "8.8.8.8:443"),
        Shot::tcp("1.1.1.1:443"),
        Shot::tcp("[2606:4700:4700::1111]:443"),
        Shot::udp("clear to the server", SERVER),
        Shot::udp("clear to the server6", SERVER_V6),
        Shot::udp("dns of the server", "198.51.100.7:53"),
        Shot::tcp("198.51.100.7:51820"),
    ]
}

/// What the real tunnel sends.
fn outer() -> Vec<Shot> {
    vec![Shot::udp("outer4", SERVER).wireguard(1), Shot::udp("outer6", SERVER_V6).wireguard(4)]
}

fn marked(shots: Vec<Shot>) -> Vec<Shot> {
    shots.into_iter().map(Shot::marked).collect()
}

pub fn t29_foreign_mark() -> Outcome {
    for set in ["meta mark set 0x6b73", "ct mark set 0x6b73; meta mark set ct mark"] {
        let it = LockedLab::new()?;
        naive_lock(&it.lab, 0, "meta mark 0x6b73 accept")?;
        hold(&it, &ordinary())?;
        nft(
            &it.lab,
            &format!(
                "table inet foreign {{ chain mangle {{
                    type route hook output priority -150; {set}
                }}
 }}"
            ),
        )?;
        leak(&it, &ordinary())?;
        no_naive_lock(&it.lab)?;
        it.lock()?;
        hold_layer_by_layer(&it, &ordinary())?;
        // What a mark from elsewhere buys: a message to the server, in WireGuard's shape.
        pass(&it, &outer())?;
    }
    Ok(())
}

pub fn t30_mark_set_by_root() -> Outcome {
    let it = LockedLab::new()?;
    naive_lock(&it.lab, 0, "meta mark 0x6b73 accept")?;
    hold(&it, &ordinary())?;
    leak(&it, &marked(ordinary()))?;
    it.during(ping_marked)?.must_show("ICMP type 8 192.168.1.50 -> 1.1.1.1")?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &marked(ordinary()))?;
    it.during(ping_marked)?.must_be_clean()?;
    pass(&it, &marked(outer()))?;
    Ok(())
}

fn ping_marked(lab: &Lab) -> Result<()> {
    for to in ["1.1.1.1", "198.51.100.7", "2606:4700:4700::1111"] {
        lab.client.output("ping", &["-c1", "-W1", "-m", "27507", to])?;
    }
    Ok(())
}

/// A packet socket's frames bear its mark, too, and meet the egress guard alone.
pub fn t30_mark_on_a_packet_socket() -> Outcome {
    let elsewhere = ["1.1.1.1", "203.0.113.10", "192.168.1.1", "198.51.100.7"];
    let it = LockedLab::new()?;
    let seen = it.during(|lab| marked_frames(lab, &elsewhere))?;
    for to in elsewhere {
        seen.must_show(to)?;
    }
    it.lock()?;
    it.during(|lab| marked_frames(lab, &elsewhere))?.must_be_clean()?;
    Ok(())
}

/// One frame of UDP to port 53 of each address, with the address as its canary.
fn marked_frames(lab: &Lab, addresses: &[&str]) -> Result<()> {
    const SCRIPT: &str = "
import socket, struct, sys
SO_MARK = 36
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(('eth0', 0))
sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x6b73)
for to in sys.argv[1:]:
    payload = b'killswitch-canary:' + to.encode() + b';'
    udp = struct.pack('!4H', 40000, 53, 8 + len(payload), 0) + payload
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0,
                       socket.inet_aton('192.168.1.50'), socket.inet_aton(to))
    total = sum(struct.unpack('!10H', head))
    total = (total & 0xffff) + (total >> 16)
    head = head[:10] + struct.pack('!H', ~(total + (total >> 16)) & 0xffff) + head[12:]
    try:
        sock.send(b'\\xff' * 6 + b'\\x02\\0\\0\\0\\0\\x01' + b'\\x08\\0' + head + udp)
    except OSError:
        pass
";
    let words: Vec<&str> = ["-c", SCRIPT].iter().chain(addresses).copied().collect();
    lab.client.command("python3", &words).map(drop)
}

/// A rule for the user that the tunnel's program runs as lets out all that this user sends.
pub fn t31_user_instead_of_mark() -> Outcome {
    let it = LockedLab::new()?;
    naive_lock(&it.lab, 0, "meta skuid 0 accept")?;
    leak(&it, &ordinary())?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &ordinary())?;
    // The same user, the same bytes: the mark decides.
    hold_layer_by_layer(&it, &outer())?;
    pass(&it, &marked(outer()))?;
    Ok(())
}

pub fn t32_source_port_instead_of_mark() -> Outcome {
    let shots = [
        Shot::udp("port4", SERVER).from("0.0.0.0:51820"),
        Shot::udp("port6", SERVER_V6).from("[::]:51820"),
        Shot::udp("elsewhere", "1.1.1.1:53").from("0.0.0.0:51820"),
        Shot::udp("shape", SERVER).from("0.0.0.0:51820").wireguard(1),
    ];
    let it = LockedLab::new()?;
    naive_lock(&it.lab, 0, "udp sport 51820 accept")?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    Ok(())
}

pub fn t33_clear_to_the_server() -> Outcome {
    let shots = [
        Shot::udp("clear4", SERVER),
        Shot::udp("clear6", SERVER_V6),
        Shot::udp("shape without mark", SERVER).wireguard(1),
        Shot::udp("shape without mark6", SERVER_V6).wireguard(4),
    ];
    let others = [
        Shot::tcp("198.51.100.7:51820"),
        Shot::tcp("[2001:db8:a::7]:51820"),
        Shot::tcp("198.51.100.7:443"),
        Shot::udp("other port", "198.51.100.7:53"),
    ];
    let it = LockedLab::new()?;
    naive_lock(
        &it.lab,
        0,
        "ip daddr 198.51.100.7 udp dport 51820 accept; ip6 daddr 2001:db8:a::7 udp dport 51820 accept",
    )?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    leak(&it, &others)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    hold(&it, &others)?;
    Ok(())
}

/// A browser whose packets got the mark still cannot talk to the server's address.
pub fn t33_shape_of_a_message() -> Outcome {
    let shapes: [(&'static str, &[u8]); 8] = [
        // RFC 9000, 17.2: a long header, version 1.
        ("quic initial", &[0xc3, 0, 0, 0, 1]),
        // RFC 9000, 17.3: a short header.
        ("quic short", &[0x41, 0x7a, 0x11, 0x02]),
        ("http", b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"),
        ("dns", &[1, 0, 1, 0, 0, 1, 0, 0]),
        ("type 0", &[0, 0, 0, 0]),
        ("type 5", &[5, 0, 0, 0]),
        ("reserved 1", &[1, 1, 0, 0]),
        ("reserved 3", &[4, 0, 0, 1]),
    ];
    let mut shots: Vec<Shot> = Vec::new();
    for (name, head) in shapes {
        shots.push(Shot::udp(name, SERVER).saying(head).marked());
        shots.push(Shot::udp(name, SERVER_V6).saying(head).marked());
    }
    let kinds: Vec<Shot> = [("type 1", 1), ("type 2", 2), ("type 3", 3), ("type 4", 4)]
        .into_iter()
        .map(|(name, kind)| Shot::udp(name, SERVER).wireguard(kind).marked())
        .collect();
    let mut it = LockedLab::new()?;
    let third = THIRD.parse()?;
    naive_lock(&it.lab, 0, "meta mark 0x6b73 accept")?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    pass(&it, &kinds)?;
    it.configure(&third_server(&it))?;
    it.lock()?;
    hold(&it, &shots)?;
    it.expectation.servers.push(Server { wireguard: false, ..Server::wireguard(third) });
    let any = |name| Shot::udp(name, THIRD).marked();
    pass(&it, &[any("quic").saying(&[0xc3, 0, 0, 0, 1]), any("http").saying(b"GET /")])?;
    hold(&it, &[Shot::udp("no mark", THIRD), Shot::tcp(THIRD).marked()])?;
    hold(&it, &[Shot::udp("other port", "203.0.113.10:53").marked()])?;
    Ok(())
}

/// One whose messages have no shape.
fn third_server(it: &LockedLab) -> String {
    let key = Base64::encode_string(&it.lab.client_keys.public);
    format!(
        "[[server]]\nname = \"three\"\nendpoints = [\"{THIRD}\"]\n\
         public_key = \"{key}\"\nmessage_shape = \"any\"\nallowed_ips = [\"0.0.0.0/0\"]\n"
    )
}

pub fn t34_foreign_dnat_of_the_endpoint() -> Outcome {
    let shots = marked(outer());
    let it = LockedLab::new()?;
    nft(
        &it.lab,
        "table inet foreign { chain output { type nat hook output priority -100;
            ip daddr 198.51.100.7 udp dport 51820 dnat ip to 1.1.1.1:53
            ip6 daddr 2001:db8:a::7 udp dport 51820 dnat ip6 to [2606:4700:4700::1111]:53
        }
        }",
    )?;
    naive_lock(
        &it.lab,
        -200,
        "ip daddr 198.51.100.7 udp dport 51820 accept; \
         ip6 daddr 2001:db8:a::7 udp dport 51820 accept",
    )?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    Ok(())
}

/// The hook's link is still `lo` after the translation.
pub fn t35_foreign_dnat_of_loopback() -> Outcome {
    let shots = [
        Shot::udp("dns at home", "127.0.0.53:53"),
        Shot::udp("own address", "192.168.1.50:53"),
        Shot::udp("dns at home6", "[::1]:53"),
    ];
    let it = LockedLab::new()?;
    it.lab.client.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    nft(
        &it.lab,
        "table inet foreign {
                chain output { type nat hook output priority -100;
                    ip daddr { 127.0.0.0/8, 192.168.1.50 } udp dport 53 dnat ip to 1.1.1.1
                    ip6 daddr ::1 udp dport 53 dnat ip6 to 2606:4700:4700::1111
                }
                chain postrouting { type nat hook postrouting priority 100;
                    oifname eth0 masquerade
                }
            }",
    )?;
    naive_lock(&it.lab, 0, "oif lo accept")?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    Ok(())
}

/// A packet to this machine, judged by output on its way to `lo`, then sent elsewhere.
pub fn t36_foreign_reroute_of_loopback() -> Outcome {
    let shots = [
        Shot::udp("to lo", "127.0.0.1:53"),
        Shot::udp("to ourselves", "192.168.1.50:53"),
        Shot::udp("to ourselves6", "[2001:db8:1::50]:53"),
    ];
    let it = LockedLab::new()?;
    it.lab.client.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    naive_lock(&it.lab, 0, "oif lo accept")?;
    hold(&it, &shots)?;
    let mark = 7;
    nft(
        &it.lab,
        &format!(
            "table inet foreign {{ chain output {{ type route hook output priority 100;
                    udp dport 53 meta mark set {mark}
                }}
 }}"
        ),
    )?;
    // Before table local, which has preference 0.
    for family in ["-4", "-6"] {
        let ip = |line: &str| {
            let words: Vec<&str> = [family].into_iter().chain(line.split(' ')).collect();
            it.lab.client.command("ip", &words)
        };
        ip("rule add pref 9 lookup local")?;
        ip("rule add pref 8 fwmark 7 lookup 777")?;
        ip("rule del pref 0")?;
    }
    it.lab.client.ip("route add default via 192.168.1.1 dev eth0 table 777
             route add ::/0 via fe80::1 dev eth0 table 777")?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold_layer_by_layer(&it, &shots)?;
    Ok(())
}

/// A packet that output lets into the tunnel, then sent through the physical link with the
/// tunnel's address.
pub fn t36_foreign_reroute_of_the_tunnel() -> Outcome {
    let shots = [Shot::udp("dns4", "1.1.1.1:53"), Shot::udp("dns6", "[2606:4700:4700::1111]:53")];
    for more in ["", "[lock]\negress_guard = false\n"] {
        let mut it = LockedLab::with(more)?;
        it.lab.start_server(0)?;
        naive_lock(&it.lab, 0, "oifname \"wg0\" accept")?;
        nft(
            &it.lab,
            "table inet foreign {
                chain output {
                    type route hook output priority 100;
                    udp dport 53 meta mark set 7
                }
            }",
        )?;
        for family in ["-4", "-6"] {
            let rule = [family, "rule", "add", "pref", "8", "fwmark", "7", "lookup", "main"];
            it.lab.client.command("ip", &rule)?;
        }
        it.lab.route_into_tunnel()?;
        let tunnel = it.lab.client_tunnel(0)?;
        leak(&it, &shots)?;
        drop(tunnel);
        no_naive_lock(&it.lab)?;
        it.lock()?;
        let _tunnel = it.lab.client_tunnel(0)?;
        it.lab.client.ip(&format!(
            "route replace default dev {TUNNEL_LINK} table {MARK} proto kernel
             route replace ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
        ))?;
        eventually("the tunnel works", || {
            Ok(it.lab.client.output("ping", &["-c1", "-W2", "9.9.9.9"])?.status.success())
        })?;
        hold(&it, &shots)?;
    }
    Ok(())
}

/// A copy of a packet to this machine, made by a foreign chain and sent to the gateway.
pub fn t36_foreign_duplicate() -> Outcome {
    let shots = [Shot::udp("to lo", "127.0.0.1:53"), Shot::udp("to ourselves", "192.168.1.50:53")];
    for more in ["", "[lock]\negress_guard = false\n"] {
        let it = LockedLab::with(more)?;
        nft(
            &it.lab,
            "table ip foreign {
                chain output {
                    type filter hook output priority 50;
                    oif lo udp dport 53 dup to 192.168.1.1 device \"eth0\"
                }
            }",
        )?;
        leak(&it, &shots)?;
        it.lock()?;
        hold(&it, &shots)?;
    }
    Ok(())
}

/// Found by random faults: a link that lost its address lends the tunnel's to what leaves by it.
pub fn t71_outer_packet_under_the_tunnel_address() -> Outcome {
    let it = LockedLab::new()?;
    it.lab.client.ip(&format!(
        "link add name other type bridge\nlink set other up\naddress add {TUNNEL_V4}/32 dev other\n\
         address add {TUNNEL_V6}/128 dev other nodad"
    ))?;
    let under_tunnel = [
        Shot::udp("outer4 under", SERVER).wireguard(1).marked().from("10.64.0.2:40001"),
        Shot::udp("outer6 under", SERVER_V6).wireguard(1).marked().from("[fd00:64::2]:40001"),
    ];
    leak(&it, &under_tunnel)?;
    it.lock()?;
    hold_layer_by_layer(&it, &under_tunnel)?;
    pass(&it, &marked(outer()))?;
    Ok(())
}
