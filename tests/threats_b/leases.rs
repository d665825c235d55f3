//! DHCP and what else a machine sends by itself when it joins a network.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use killswitch::lab::addresses::*;
use killswitch::lab::dhcp::{self, DhcpOptions, DhcpServer, Kind, Message};
use killswitch::lab::harness::Outcome;
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Capture, Context, Error, Host, Lab, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::common::LockedLab;
use crate::shot::{Shot, hold, leak, naive_lock, no_naive_lock, pass};

const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SOLICIT: u8 = 1;

/// Port 68 of a machine, on one link.
fn client_port(host: &Host, link: &str, patience: Duration) -> Result<UdpSocket> {
    host.run(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
        setsockopt(&socket, sockopt::BindToDevice, &link.into())?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    })?
    .during("port 68")
}

fn receive(socket: &UdpSocket) -> io::Result<Message> {
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    Message::parse(&buffer[..length]).ok_or_else(|| io::Error::other("no DHCP message"))
}

/// One exchange by an ordinary socket; `None`: no answer.
pub fn ask(
    host: &Host,
    kind: Kind,
    client: Ipv4Addr,
    to: Ipv4Addr,
    patience: Duration,
) -> Result<Option<Message>> {
    let socket = client_port(host, CLIENT_LINK, patience)?;
    let message = dhcp::request(kind, [1, 2, 3, 4], HARDWARE, client);
    Ok(match socket.send_to(&message, (to, 67)) {
        Ok(_) => receive(&socket).ok(),
        Err(_) => None,
    })
}

/// One exchange of a machine without an address, by a packet socket, as DHCP clients do it.
fn ask_raw(lab: &Lab, kind: Kind) -> Result<Message> {
    let listener = client_port(&lab.client, CLIENT_LINK, LONG)?;
    let sender = PacketSocket::open(&lab.client, CLIENT_LINK)?;
    let message = dhcp::request(kind, [5, 6, 7, 8], sender.address(), Ipv4Addr::UNSPECIFIED);
    let builder = PacketBuilder::ethernet2(sender.address(), [0xff; 6])
        .ipv4([0; 4], [255; 4], 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, &message).during("a frame")?;
    sender.send(&frame).during("a first request")?;
    receive(&listener).during("an answer to a first request")
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(500);

pub fn t66_first_lease_renewal_and_rebinding() -> Outcome {
    let it = LockedLab::new()?;
    let server = DhcpServer::start(&it.lab.router, DhcpOptions::default())?;
    let client = &it.lab.client;
    // The control: a lock that knows nothing of DHCP breaks renewals.
    naive_lock(&it.lab, 0, "")?;
    if ask(client, Kind::Request, CLIENT_V4, ROUTER_V4, SHORT)?.is_some() {
        return Err("a renewal under a lock without DHCP".into());
    }
    no_naive_lock(&it.lab)?;
    it.lock()?;
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    client.ip("address flush dev eth0 scope global")?;
    let offer = ask_raw(&it.lab, Kind::Discover)?;
    assert_eq!((offer.kind, offer.yours), (Kind::Offer, CLIENT_V4));
    assert_eq!(ask_raw(&it.lab, Kind::Request)?.kind, Kind::Ack);
    client.ip(&format!(
        "address add {CLIENT_V4}/24 dev {CLIENT_LINK}
         route add default via {ROUTER_V4}"
    ))?;
    for to in [ROUTER_V4, Ipv4Addr::BROADCAST] {
        let lease = ask(client, Kind::Request, CLIENT_V4, to, LONG)?;
        assert_eq!(lease.map(|it| it.kind), Some(Kind::Ack), "{to}");
    }
    let report = capture.stop()?;
    assert_eq!(server.heard(), [Kind::Discover, Kind::Request, Kind::Request, Kind::Request]);
    assert_eq!(report.allowed.get("DHCP"), Some(&4));
    assert_eq!(report.leaked_total(), 0, "{}", report.summary(20));
    Ok(())
}

/// Programs that use DHCP's ports for something else, or DHCP for a server elsewhere.
pub fn t66_nothing_but_dhcp() -> Outcome {
    let message = dhcp::request(Kind::Request, [1, 2, 3, 4], HARDWARE, CLIENT_V4);
    let mut answer = message.clone();
    answer[0] = 2;
    let mut bootp = message.clone();
    bootp[236] = 0;
    let near = |name| Shot::udp(name, "192.168.1.1:67").from("0.0.0.0:68");
    let all = |name| Shot::udp(name, "255.255.255.255:67").from("0.0.0.0:68").through(CLIENT_LINK);
    let shots = [
        near("short"),
        all("short to all"),
        near("answer").saying(&answer),
        all("answer to all").saying(&answer),
        near("no cookie").saying(&bootp),
        near("zeros").saying(&[0; 300]),
        Shot::udp("public server", "203.0.113.10:67").from("0.0.0.0:68").saying(&message),
        Shot::udp("other port", "192.168.1.1:67").from("0.0.0.0:1068").saying(&message),
        Shot::frame("frame", "255.255.255.255:67").from("192.168.1.50:68"),
        Shot::frame("frame answer", "255.255.255.255:67").from("192.168.1.50:68").saying(&answer),
    ];
    let it = LockedLab::new()?;
    leak(&it, &shots)?;
    it.lock()?;
    hold(&it, &shots)?;
    // Private, but behind the gateway: the routing guard.
    let far = Shot::udp("relay", "10.9.9.9:67").from("0.0.0.0:68").saying(&message);
    hold(&it, &[far])?;
    pass(&it, &[near("renewal").saying(&message), all("rebinding").saying(&message)])?;
    it.configure("[allow]\ndhcp = false\n")?;
    it.lock()?;
    hold(&it, &[near("renewal").saying(&message), all("rebinding").saying(&message)])?;
    Ok(())
}

pub fn t67_dhcpv6_on_the_link_only() -> Outcome {
    let solicit = |name, to| {
        Shot::udp(name, to).from("[::]:546").through(CLIENT_LINK).saying(&[SOLICIT, 1, 2, 3])
    };
    let everyone = "[ff02::1:2]:547";
    let shots = [
        solicit("global source", everyone).from("[2001:db8:1::50]:546"),
        solicit("all servers of the site", "[ff05::1:3]:547"),
        solicit("router", "[2001:db8:1::1]:547"),
        solicit("link-local router", "[fe80::1]:547"),
        solicit("internet", "[2001:db8:ffff::10]:547"),
        solicit("all nodes", "[ff02::1]:547"),
        solicit("other port", everyone).from("[::]:1546"),
        solicit("dns", "[ff02::1:2]:53"),
    ];
    let it = LockedLab::new()?;
    leak(&it, &shots)?;
    it.lock()?;
    hold(&it, &shots)?;
    pass(&it, &[solicit("solicit", everyone)])?;
    Ok(())
}

pub fn t67_what_machines_send_by_themselves() -> Outcome {
    let shots = [
        Shot::udp("teredo", "203.0.113.10:3544"),
        Shot::udp("stun", "203.0.113.10:3478"),
        Shot::udp("stun6", "[2001:db8:ffff::10]:3478"),
        Shot::udp("stun bound", "203.0.113.10:3478").through(CLIENT_LINK),
        Shot::udp("stun of the router", "192.168.1.1:3478"),
        Shot::udp("carrier nat", "100.64.7.1:443"),
        Shot::tcp("100.64.7.1:80"),
        // systemd-resolved asks the servers of a link through that link.
        Shot::udp("dns of the link", "192.168.1.1:53").through(CLIENT_LINK),
        Shot::udp("dns of the link6", "[2001:db8:1::1]:53").through(CLIENT_LINK),
        Shot::tcp("192.168.1.1:853").through(CLIENT_LINK),
        Shot::udp("mdns", "224.0.0.251:5353").through(CLIENT_LINK),
        Shot::udp("mdns6", "[ff02::fb]:5353").through(CLIENT_LINK),
        Shot::udp("llmnr", "224.0.0.252:5355").through(CLIENT_LINK),
        Shot::udp("llmnr6", "[ff02::1:3]:5355").through(CLIENT_LINK),
        Shot::udp("ssdp", "239.255.255.250:1900").through(CLIENT_LINK),
        Shot::udp("netbios", "192.168.1.255:137").through(CLIENT_LINK),
        Shot::udp("nat-pmp", "192.168.1.1:5351"),
        Shot::udp("ntp", "203.0.113.10:123"),
    ];
    let it = LockedLab::new()?;
    leak(&it, &shots)?;
    it.lock()?;
    hold(&it, &shots)?;
    crate::shot::remove_routing_guard(&it.lab)?;
    hold(&it, &shots).map_err(|error| Error::new(format!("tables alone: {error}")))?;
    Ok(())
}
