//! Local senders of every kind: threats 1, 2, 3, 4, 5, 7, 10 and 11.

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Error, Lab, Result};

use crate::common::{LockedLab, Seen};

const SCRIPT: &str = include_str!("send.py");

/// A kind of `send.py`, and the class of the leak where the packet has no room for a canary.
type Sender = (&'static str, Option<&'static str>);

const PACKET_SOCKETS: [Sender; 12] = [
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

const SOCKETS: [Sender; 51] = [
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
fn send(lab: &Lab, senders: &[Sender]) -> Result<()> {
    let mut arguments = vec!["-"];
    arguments.extend(senders.iter().map(|(kind, _)| kind));
    lab.client.feed("python3", &arguments, SCRIPT)
}

/// Every one of the senders must have been seen.
fn all_leaked(seen: &Seen, senders: &[Sender]) -> Result<()> {
    let silent = |(kind, class): &&Sender| seen.must_show(class.unwrap_or(kind)).is_err();
    let silent: Vec<_> = senders.iter().filter(silent).map(|(kind, _)| *kind).collect();
    match silent.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!("not seen without the lock: {}", silent.join(", ")))),
    }
}

fn stopped(senders: &[Sender]) -> Outcome {
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, senders))?, senders)?;
    it.lock()?;
    it.during(|lab| send(lab, senders))?.must_be_clean()?;
    Ok(())
}

pub fn t01_packet_socket() -> Outcome {
    stopped(&PACKET_SOCKETS)
}

pub fn t05_every_socket() -> Outcome {
    stopped(&SOCKETS)
}
