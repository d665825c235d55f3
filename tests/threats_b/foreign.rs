//! Packets under addresses that are not this machine's, and what the machine itself says to them.
//! Any program may send under any IPv6 address (IPV6_FREEBIND, ipv6(7)).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use killswitch::lab::addresses::*;
use killswitch::lab::decoder::{Service, Transport};
use killswitch::lab::dhcp::{self, Kind};
use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Error, Lab, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendto,
    setsockopt, socket, sockopt,
};

use crate::allow::lan_of;
use crate::bridges::{enslave_nic, guest, join_lan};
use crate::common::{LockedLab, Seen, canary};
use crate::shot::{Shot, fire, nft};

const SERVICE: u16 = 2222;
/// Where nothing may go.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);

fn inbound(protocol: &str, from: &str) -> String {
    format!("{{ proto = \"{protocol}\", port = {SERVICE}, from = [\"{from}\"] }}")
}

/// A datagram, or a connection's first packet; whether the kernel refuses, the wire shows.
fn send_under(from: SocketAddr, to: SocketAddr, kind: SockType, name: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet6, kind, flags, None).during(name)?;
    setsockopt(&fd, sockopt::IpFreebind, &true).during(name)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).during(name)?;
    let to = SockaddrStorage::from(to);
    let _refused = match kind {
        SockType::Stream => connect(fd.as_raw_fd(), &to),
        _ => sendto(fd.as_raw_fd(), &canary(name), &to, MsgFlags::empty()).map(drop),
    };
    Ok(fd)
}

/// What a service says to who knocked under a foreign address would leave as a reply.
pub fn t72_knock_under_a_foreign_address() -> Outcome {
    let services = inbound("udp", "::/0");
    let mut it = LockedLab::with(&format!("[allow]\ninbound = [{services}]\n"))?;
    let from = "::/0".parse()?;
    it.expectation.inbound.push(Service { transport: Transport::Udp, port: SERVICE, from });
    let (service, remote) = ((CLIENT_V6, SERVICE).into(), (INTERNET_V6, 7777).into());
    let knock = |lab: &Lab| {
        lab.client.run(|| {
            let own = UdpSocket::bind(service).during("the service")?;
            send_under(remote, service, SockType::Datagram, "knock")?;
            let _refused = own.send_to(&canary("secret"), remote);
            Ok::<_, Error>(())
        })?
    };
    it.during(knock)?.must_show("secret")?;
    it.lock()?;
    it.during(knock)?.must_be_clean()?;
    Ok(())
}

/// A refusal goes to where the refused packet says it comes from.
pub fn t73_refusal_under_a_foreign_address() -> Outcome {
    let (from, to) = (SocketAddr::from((NEIGHBOUR_V6, 5555)), SocketAddr::from((FAR, 443)));
    let try_both = |lab: &Lab| {
        lab.client.run(|| {
            send_under(from, to, SockType::Datagram, "refused")?;
            send_under(from, to, SockType::Stream, "connection").map(drop)
        })?
    };
    let addresses = [FAR.octets(), NEIGHBOUR_V6.octets()].concat();
    let shows_reset = |seen: &Seen| seen.holds(&addresses);
    for allowed in [
        format!("lan = [\"{LAN_V4}\", \"{LAN_V6}\"]"),
        format!("inbound = [{}]", inbound("tcp", "::/0").replace("2222", "443")),
    ] {
        let mut it = LockedLab::with(&format!("[allow]\n{allowed}\n"))?;
        lan_of(&mut it)?;
        nft(
            &it.lab,
            &format!(
                "table inet naive {{
                    chain output {{
                        type filter hook output priority 0;
                        ip6 daddr {FAR} meta l4proto tcp reject with tcp reset
                        ip6 daddr {FAR} reject
                    }}
                }}"
            ),
        )?;
        let seen = it.during(try_both)?;
        seen.must_show("refused")?;
        if !shows_reset(&seen) {
            return Err("control: no reset on the wire".into());
        }
        nft(&it.lab, "delete table inet naive")?;
        it.lock()?;
        let seen = it.during(try_both)?;
        if shows_reset(&seen) {
            return Err(format!("{allowed}: a reset on the wire").into());
        }
        seen.must_be_clean()?;
    }
    Ok(())
}

/// So does a time server's answer.
pub fn t73_time_server_asked_under_a_foreign_address() -> Outcome {
    let mut it = LockedLab::with(&format!("[allow]\nntp = [\"{INTERNET_V6}\"]\n"))?;
    it.expectation.ntp = vec![INTERNET_V6.into()];
    let ask = |lab: &Lab| {
        lab.client.run(|| {
            for own_or_not in [CLIENT_V6, NEIGHBOUR_V6] {
                let (from, to) = ((own_or_not, 5555).into(), (INTERNET_V6, 123).into());
                send_under(from, to, SockType::Datagram, "time")?;
            }
            Ok::<_, Error>(())
        })?
    };
    let asks_as = |seen: &Seen, own_or_not: Ipv6Addr| {
        seen.holds(&[own_or_not.octets(), INTERNET_V6.octets()].concat())
    };
    if !asks_as(&it.during(ask)?, NEIGHBOUR_V6) {
        return Err("control: no question on the wire".into());
    }
    it.lock()?;
    let locked = it.during(ask)?;
    assert!(asks_as(&locked, CLIENT_V6), "the time is asked for");
    assert!(!asks_as(&locked, NEIGHBOUR_V6), "the neighbour is answered");
    Ok(())
}

/// The guard at a bridged NIC knows no connections, nor who sent a frame: what begins at a service's
/// port must not get so far, from here or from a guest behind another bridge; nor must such a guest
/// get to the LAN, or ask there what this machine may ask.
pub fn t74_by_a_bridge_with_the_nic() -> Outcome {
    let services = ["0.0.0.0/0", "::/0"].map(|from| inbound("udp", from)).join(", ");
    let from_host = vec![
        Shot::udp("service4", "1.1.1.1:443").from("0.0.0.0:2222"),
        Shot::udp("service6", "[2606:4700:4700::1111]:443").from("[::]:2222"),
    ];
    let to_far = vec![Shot::udp("guest", "8.8.8.8:443").from("0.0.0.0:2222")];
    let to_lan = vec![
        Shot::udp("guest to lan4", "192.168.1.20:8080"),
        Shot::udp("guest to lan6", "[2001:db8:1::20]:8080"),
    ];
    let request = dhcp::request(Kind::Request, [1, 2, 3, 4], [2, 0, 0, 0, 0, 1], CLIENT_V4);
    let as_host = vec![
        Shot::udp("guest's lease", "192.168.1.1:67").from("0.0.0.0:68").saying(&request),
        Shot::udp("guest's time4", "203.0.113.10:123"),
        Shot::udp("guest's time6", "[2001:db8:ffff::10]:123"),
    ];
    for (allowed, from_host, from_guest) in [
        (format!("inbound = [{services}]"), from_host, to_far),
        (format!("lan = [\"{LAN_V4}\", \"{LAN_V6}\"]"), Vec::new(), to_lan),
        (format!("ntp = [\"{INTERNET_V4}\", \"{INTERNET_V6}\"]"), Vec::new(), as_host),
    ] {
        let mut it = LockedLab::with(&format!("[allow]\n{allowed}\n"))?;
        lan_of(&mut it)?;
        // What only this machine may do must be seen if a guest does.
        it.expectation.dhcp_servers.clear();
        let near = guest(&it.lab, "br-test", "veth123", 1)?;
        let other = guest(&it.lab, "docker0", "vethabc", 2)?;
        enslave_nic(&it.lab, "br-test")?;
        join_lan(&near.host)?;
        for family in ["ip", "ip6"] {
            let masquerade =
                "type nat hook postrouting priority 100; oifname \"br-test\" masquerade";
            nft(&it.lab, &format!("table {family} naive {{ chain nat {{ {masquerade}\n}}\n}}"))?;
        }
        let everybody = |lab: &Lab| {
            from_guest.iter().try_for_each(|shot| shot.fire(&other.host))?;
            fire(lab, &from_host)
        };
        for shot in from_guest.iter().chain(&from_host) {
            it.until_shown(shot.name(), everybody)?;
        }
        it.lock()?;
        it.during(everybody)?.must_be_clean()?;
    }
    Ok(())
}

/// A guest that calls itself a LAN's neighbour, or a service's client, has this machine answer there.
pub fn t75_guest_under_a_foreign_address() -> Outcome {
    let to_clients = format!("[allow]\ninbound = [{}]\n", inbound("tcp", "0.0.0.0/0"));
    for (allowed, claimed) in [
        (format!("[allow]\nlan = [\"{LAN_V4}\"]\n"), NEIGHBOUR_V4),
        (format!("[lock]\negress_guard = false\n{to_clients}"), INTERNET_V4),
        (to_clients, INTERNET_V4),
    ] {
        let it = LockedLab::with(&allowed)?;
        let guest = guest(&it.lab, "docker0", "vethabc", 1)?;
        for link in ["all", "docker0"] {
            it.lab.client.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0")?;
        }
        guest.host.ip(&format!("address add {claimed}/32 dev {CLIENT_LINK}"))?;
        let own = Ipv4Addr::new(172, 18, 1, 1);
        let _service = it.lab.client.run(|| TcpListener::bind((own, SERVICE)))??;
        let claimed_port = format!("{claimed}:5555");
        let shots = [
            Shot::udp("quoted", "172.18.1.1:9").from(&claimed_port),
            Shot::tcp("172.18.1.1:2222").from(&claimed_port),
        ];
        let call = |_: &Lab| shots.iter().try_for_each(|shot| shot.fire(&guest.host));
        let answers = |seen: &Seen| seen.holds(&[own.octets(), claimed.octets()].concat());
        let open = it.during(call)?;
        open.must_show("quoted")?;
        if !answers(&open) {
            return Err("control: no answer on the wire".into());
        }
        it.lock()?;
        let locked = it.during(call)?;
        if answers(&locked) {
            return Err(format!("{allowed}: an answer on the wire").into());
        }
        locked.must_be_clean()?;
    }
    Ok(())
}
