//! `forward.mode = "tunnel"`: guests and LAN clients into the tunnel, and nowhere else.

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Error, Host, Lab, Result};

use crate::bridges::guest;
use crate::common::LockedLab;
use crate::shot::Shot;
use crate::talk::{By, answers, is_mute, talks};

const OUT: [(By, &str); 4] = [
    (By::Ping, "9.9.9.9"),
    (By::Udp, "1.1.1.1:53"),
    (By::Tcp, "203.0.113.10:443"),
    (By::Udp, "[2606:4700:4700::1111]:53"),
];

fn tunnel_routes(lab: &Lab) -> Result<()> {
    lab.client.ip(&format!(
        "route replace default dev {TUNNEL_LINK} table {MARK} proto kernel
         route replace ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
    ))
}

fn shots() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("udp4", "203.0.113.10:4433"),
        Shot::tcp("1.1.1.1:443"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::udp("clear to the server", "198.51.100.7:51820"),
    ]
}

fn send(host: &Host) -> Result<()> {
    shots().iter().try_for_each(|shot| shot.fire(host))
}

pub fn forward_tunnel_takes_guests() -> Outcome {
    let mut it = LockedLab::with("[forward]\nmode = \"tunnel\"\n")?;
    let guest = guest(&it.lab, "br-test", "veth123", 1)?;
    it.lab.start_server(0)?;
    // The control: routed, they leave in clear.
    let seen = it.during(|_| send(&guest.host))?;
    if let Some(shot) = shots().iter().find(|shot| !shot.is_in(&seen)) {
        return Err(format!("control: {}: {}", shot.name(), seen.report.summary(20)).into());
    }
    it.lock()?;
    it.during(|_| send(&guest.host))?.must_be_clean()?;
    let tunnel = it.lab.client_tunnel(0)?;
    tunnel_routes(&it.lab)?;
    // The server accepts nothing but the tunnel's own address from this peer.
    talks(&guest.host, &OUT)?;
    talks(&it.lab.client, &OUT)?;
    it.during(|_| send(&guest.host))?.must_be_clean()?;
    drop(tunnel);
    it.during(|_| send(&guest.host))?.must_be_clean()?;
    // A tunnel without its mode: the guest stays where it is.
    let _tunnel = it.lab.client_tunnel(0)?;
    it.configure("")?;
    it.lock()?;
    tunnel_routes(&it.lab)?;
    talks(&it.lab.client, &OUT)?;
    is_mute(&guest.host, &OUT)?;
    it.during(|_| send(&guest.host))?.must_be_clean()?;
    Ok(())
}

/// The client as a gateway: a neighbour's packets, none of which may be seen on the wire.
pub fn forward_tunnel_takes_lan_clients() -> Outcome {
    const OUT: [(By, &str); 2] = [(By::Udp, "203.0.113.10:4433"), (By::Udp, "1.1.1.1:8080")];
    let more = "[allow]\nlan = [\"192.168.1.0/24\"]\n[forward]\nmode = \"tunnel\"\n";
    let mut it = LockedLab::with(more)?;
    it.expectation.lan = vec![LAN_V4.parse()?];
    it.expectation.groups = true;
    it.lab.client.sysctl("net/ipv4/ip_forward", "1")?;
    it.lab.client.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
    it.lab.client.sysctl("net/ipv4/conf/eth0/send_redirects", "0")?;
    it.lab.neighbour.ip(&format!("route replace default via {CLIENT_V4}"))?;
    let shots = [Shot::udp("lan client", "203.0.113.10:4433"), Shot::tcp("1.1.1.1:443")];
    let send = |lab: &Lab| shots.iter().try_for_each(|shot| shot.fire(&lab.neighbour));
    let seen = it.during(send)?;
    if let Some(shot) = shots.iter().find(|shot| !shot.is_in(&seen)) {
        return Err(format!("control: {}: {}", shot.name(), seen.report.summary(20)).into());
    }
    it.lab.start_server(0)?;
    it.lock()?;
    none_leaks(&it, send)?;
    let tunnel = it.lab.client_tunnel(0)?;
    tunnel_routes(&it.lab)?;
    eventually("a LAN client through the tunnel", || {
        answers(&it.lab.neighbour, OUT[0].0, OUT[0].1)
    })?;
    talks(&it.lab.neighbour, &OUT)?;
    drop(tunnel);
    none_leaks(&it, send)?;
    Ok(())
}

/// The LAN client is told why, in an ICMP error that quotes its own packet: so no canary is looked
/// for.
fn none_leaks(it: &LockedLab, send: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let report = it.during(send)?.report;
    match report.leaked_total() {
        0 => Ok(()),
        _ => Err(Error::new(format!("leaked: {}", report.summary(20)))),
    }
}
