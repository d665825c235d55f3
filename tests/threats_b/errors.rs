//! ICMP errors: those about the tunnel's outer flow count, others do not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::PacketBuilder;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Lab, Result};

use crate::common::LockedLab;
use crate::shot::{Shot, nft, remove_routing_guard};

const OTHER_V6: &str = "[2606:4700:4700::1111]:443";

/// What a router would say of a datagram of ours: RFC 1191, or packet too big of RFC 4443.
fn too_big(lab: &Lab, about: &SocketAddr, from_port: u16, mtu: u16) -> Result<()> {
    let router = PacketSocket::open(&lab.router, WIRE)?;
    let client = PacketSocket::open(&lab.client, CLIENT_LINK)?;
    let ethernet = PacketBuilder::ethernet2(router.address(), client.address());
    let mut quoted = Vec::new();
    let mut frame = Vec::new();
    match about.ip() {
        IpAddr::V4(to) => {
            PacketBuilder::ipv4(CLIENT_V4.octets(), to.octets(), 60)
                .udp(from_port, about.port())
                .write(&mut quoted, &[1, 0, 0, 0, 0, 0, 0, 0])
                .during("a quoted packet")?;
            ethernet
                .ipv4(ROUTER_V4.octets(), CLIENT_V4.octets(), 64)
                .icmpv4_raw(3, 4, [0, 0, mtu.to_be_bytes()[0], mtu.to_be_bytes()[1]])
                .write(&mut frame, &quoted)
                .during("a frame")?;
        }
        IpAddr::V6(to) => {
            PacketBuilder::ipv6(CLIENT_V6.octets(), to.octets(), 60)
                .udp(from_port, about.port())
                .write(&mut quoted, &[1, 0, 0, 0, 0, 0, 0, 0])
                .during("a quoted packet")?;
            ethernet
                .ipv6(ROUTER_V6.octets(), CLIENT_V6.octets(), 64)
                .icmpv6_raw(2, 0, u32::from(mtu).to_be_bytes())
                .write(&mut frame, &quoted)
                .during("a frame")?;
        }
    }
    router.send(&frame).during("packet too big").map(drop)
}

/// The path MTU that the kernel has learnt.
fn learnt(lab: &Lab, to: IpAddr, mtu: u16) -> Result<bool> {
    let (to, mark) = (to.to_string(), MARK.to_string());
    let route = lab.client.command("ip", &["route", "get", &to, "mark", &mark])?;
    Ok(route.contains(&format!("mtu {mtu}")))
}

/// A socket with a flow, and a router's word about it; whether it is believed.
fn believed(lab: &Lab, shot: &Shot, to: &str, port: u16, mtu: u16) -> Result<bool> {
    let to: SocketAddr = to.parse().during(to)?;
    let _open = shot.hold_open(&lab.client)?;
    for _ in 0..5 {
        too_big(lab, &to, port, mtu)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    learnt(lab, to.ip(), mtu)
}

pub fn path_mtu_of_the_outer_flow() -> Outcome {
    let server = ["198.51.100.7:51820", "[2001:db8:a::7]:51820"];
    // The sockets are marked: that the error is about a server is what counts.
    let other = ["1.1.1.1:443", OTHER_V6];
    for (number, (to, elsewhere)) in (0u16..).zip(server.into_iter().zip(other)) {
        let from = if number == 0 { "0.0.0.0:40001" } else { "[::]:40001" };
        let flow = |to: &str| Shot::udp("flow", to).from(from).wireguard(1).marked();
        let it = LockedLab::new()?;
        eventually("control: an error about anything is believed", || {
            believed(&it.lab, &flow(elsewhere), elsewhere, 40001, 1290)
        })?;
        let it_locked = LockedLab::new()?;
        it_locked.lock()?;
        eventually("an error about the outer flow is believed", || {
            believed(&it_locked.lab, &flow(to), to, 40001, 1290)
        })?;
        if believed(&it_locked.lab, &flow(elsewhere), elsewhere, 40001, 1290)? {
            return Err(format!("an error about {elsewhere} is believed").into());
        }
        // A quoted port that never sent anything: conntrack relates it to nothing.
        if believed(&it_locked.lab, &flow(to), to, 40002, 1285)? {
            return Err(format!("an error about no flow to {to} is believed").into());
        }
    }
    Ok(())
}

/// A connection from before the lock, which conntrack knows: an error about it is "related", and
/// still nothing that may touch this machine any more.
pub fn path_mtu_of_an_older_connection() -> Outcome {
    for (to, from) in [("1.1.1.1:443", "0.0.0.0:40003"), (OTHER_V6, "[::]:40003")] {
        let it = LockedLab::new()?;
        nft(
            &it.lab,
            "table inet foreign {
                chain output {
                    type filter hook output priority 0
                    ct state new counter
                }
            }",
        )?;
        let _open = Shot::udp("flow", to).from(from).hold_open(&it.lab.client)?;
        it.lock()?;
        // It has no route to learn about, either: the tables are to hold alone.
        remove_routing_guard(&it.lab)?;
        let address: SocketAddr = to.parse()?;
        for _ in 0..5 {
            too_big(&it.lab, &address, 40003, 1290)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        if learnt(&it.lab, address.ip(), 1290)? {
            return Err(format!("an error about {to}, from before the lock, is believed").into());
        }
        it.unlock()?;
        eventually("control: it is believed without the lock", || {
            too_big(&it.lab, &address, 40003, 1290)?;
            learnt(&it.lab, address.ip(), 1290)
        })?;
    }
    Ok(())
}
