//! Containers and guests behind bridges, as Docker and libvirt set them up.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::dhcp::{DhcpOptions, DhcpServer, Kind};
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::services::Echo;
use killswitch::lab::{Host, Lab, Result};

use crate::allow::lan_of;
use crate::common::LockedLab;
use crate::leases::ask;
use crate::shot::{Shot, fire, hold, leak, nft};
use crate::talk::{By, is_mute, talks};

/// Two guests may be told apart by a number.
pub struct Guest {
    pub host: Host,
    _echo: Echo,
}

/// A bridge with one guest: 172.18.N.1 and fd18:N::1 here, .2 and ::2 there.
pub fn guest(lab: &Lab, bridge: &str, port: &str, number: u8) -> Result<Guest> {
    let host = Host::new("guest")?;
    host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    lab.client.sysctl("net/ipv4/ip_forward", "1")?;
    lab.client.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.client.ip(&format!(
        "link add {bridge} type bridge forward_delay 0 mcast_snooping 0
         link add {port} type veth peer name {CLIENT_LINK} netns {path}
         link set {port} master {bridge} up
         address add 172.18.{number}.1/24 dev {bridge}
         address add fd18:{number}::1/64 dev {bridge} nodad
         link set {bridge} up",
        path = host.path()
    ))?;
    host.ip(&format!(
        "address add 172.18.{number}.2/24 dev {CLIENT_LINK}
         address add fd18:{number}::2/64 dev {CLIENT_LINK} nodad
         link set {CLIENT_LINK} up
         route add default via 172.18.{number}.1
         route add ::/0 via fd18:{number}::1"
    ))?;
    let addresses: [IpAddr; 2] = [
        Ipv4Addr::new(172, 18, number, 2).into(),
        std::net::Ipv6Addr::new(0xfd18, number.into(), 0, 0, 0, 0, 0, 2).into(),
    ];
    let wait = ["-6", "address", "show", "tentative"];
    eventually("the guest's addresses", || {
        Ok(host.command("ip", &wait)?.is_empty() && lab.client.command("ip", &wait)?.is_empty())
    })?;
    let echo = Echo::start(&host, &addresses, &[80, 53])?;
    Ok(Guest { host, _echo: echo })
}

fn host_echo(lab: &Lab) -> Result<Echo> {
    let here = ["172.18.1.1", "fd18:1::1"].map(|text| text.parse().expect("an address"));
    Echo::start(&lab.client, &here, &[53, 8080])
}

const FROM_HOST: [(By, &str); 6] = [
    (By::Ping, "172.18.1.2"),
    (By::Ping, "fd18:1::2"),
    (By::Udp, "172.18.1.2:53"),
    (By::Tcp, "172.18.1.2:80"),
    (By::Udp, "[fd18:1::2]:53"),
    (By::Tcp, "[fd18:1::2]:80"),
];

const FROM_GUEST: [(By, &str); 5] = [
    (By::Ping, "172.18.1.1"),
    // Docker's resolver, libvirt's dnsmasq.
    (By::Udp, "172.18.1.1:53"),
    (By::Tcp, "172.18.1.1:8080"),
    (By::Udp, "[fd18:1::1]:53"),
    (By::Tcp, "[fd18:1::1]:8080"),
];

pub fn bridge_host_and_guest_talk() -> Outcome {
    let lan = format!("[allow]\nlan = [\"172.16.0.0/12\", \"{LAN_V4}\", \"{LAN_V6}\"]\n");
    for (bridge, port, more) in [
        ("br-test", "veth123", ""),
        ("docker0", "vethabc", ""),
        ("virbr0", "vnet0", ""),
        // Then guests are asked for their addresses, too (threat 75).
        ("virbr0", "vnet0", &lan),
    ] {
        let mut it = LockedLab::with(more)?;
        if !more.is_empty() {
            lan_of(&mut it)?;
        }
        let guest = guest(&it.lab, bridge, port, 1)?;
        let _echo = host_echo(&it.lab)?;
        talks(&it.lab.client, &FROM_HOST)?;
        it.lock()?;
        talks(&it.lab.client, &FROM_HOST)?;
        talks(&guest.host, &FROM_GUEST)?;
        hold(&it, &[])?;
    }
    Ok(())
}

/// It is the allowance that does it, and the kind of the link: a name is not enough.
pub fn bridge_needs_its_allowance() -> Outcome {
    let it = LockedLab::with("[allow]\ninternal = []\n")?;
    let inside = guest(&it.lab, "br-test", "veth123", 1)?;
    let _echo = host_echo(&it.lab)?;
    talks(&inside.host, &FROM_GUEST)?;
    it.lock()?;
    is_mute(&it.lab.client, &FROM_HOST)?;
    is_mute(&inside.host, &FROM_GUEST)?;

    let it = LockedLab::new()?;
    it.lab.client.ip(&format!(
        "link set {CLIENT_LINK} down
         link set {CLIENT_LINK} name br-nic
         link set br-nic up
         route add default via {ROUTER_V4}
         address replace {CLIENT_V6}/64 dev br-nic nodad
         route replace ::/0 via {ROUTER_LINK_LOCAL} dev br-nic"
    ))?;
    leak(&it, &from_anywhere())?;
    it.lock()?;
    hold(&it, &from_anywhere())?;
    hold(&it, &[Shot::frame("frame", "1.1.1.1:53").through("br-nic")])?;
    Ok(())
}

fn from_anywhere() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("udp4", "203.0.113.10:4433"),
        Shot::tcp("1.1.1.1:443"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("[2606:4700:4700::1111]:443"),
        Shot::udp("neighbour", "192.168.1.20:8080"),
        Shot::udp("clear to the server", "198.51.100.7:51820"),
    ]
}

/// As `docker run -p 8080:80`: an address of the host's own leads to the guest.
fn publish(lab: &Lab) -> Result<()> {
    nft(
        lab,
        "table inet docker {
            chain published {
                fib daddr type local tcp dport 8080 dnat ip to 172.18.1.2:80
                fib daddr type local tcp dport 8080 dnat ip6 to [fd18:1::2]:80
            }
            chain prerouting { type nat hook prerouting priority -100; jump published; }
            chain output { type nat hook output priority -100; jump published; }
            chain postrouting { type nat hook postrouting priority 100;
                oifname != \"br-test\" ip saddr 172.18.1.0/24 masquerade
                oifname != \"br-test\" ip6 saddr fd18:1::/64 masquerade
            }
        }",
    )
}

const PUBLISHED: [(By, &str); 2] =
    [(By::Tcp, "192.168.1.50:8080"), (By::Tcp, "[2001:db8:1::50]:8080")];

pub fn bridge_published_port_from_the_host() -> Outcome {
    let it = LockedLab::new()?;
    let _guest = guest(&it.lab, "br-test", "veth123", 1)?;
    is_mute(&it.lab.client, &PUBLISHED)?;
    publish(&it.lab)?;
    talks(&it.lab.client, &PUBLISHED)?;
    it.lock()?;
    talks(&it.lab.client, &PUBLISHED)?;
    hold(&it, &[])?;
    it.configure("[allow]\ninternal = []\n")?;
    it.lock()?;
    is_mute(&it.lab.client, &PUBLISHED)?;
    Ok(())
}

/// What Docker publishes it publishes to the LAN as well: not under the lock.
pub fn bridge_published_port_is_closed_to_the_lan() -> Outcome {
    let it = LockedLab::new()?;
    let _guest = guest(&it.lab, "br-test", "veth123", 1)?;
    publish(&it.lab)?;
    talks(&it.lab.neighbour, &PUBLISHED)?;
    it.lock()?;
    it.during(|lab| is_mute(&lab.neighbour, &PUBLISHED))?.must_be_clean()?;
    Ok(())
}

pub fn bridge_guest_gets_a_lease_from_the_host() -> Outcome {
    // The laboratory's DHCP server serves the link of this name.
    let it = LockedLab::with(&format!("[allow]\ninternal = [\"{LAN_LINK}\"]\n"))?;
    let guest = guest(&it.lab, LAN_LINK, "veth123", 1)?;
    guest.host.ip("address flush dev eth0 scope global")?;
    let options = DhcpOptions { address: Ipv4Addr::new(172, 18, 1, 2), ..DhcpOptions::default() };
    let server = DhcpServer::start(&it.lab.client, options)?;
    let nobody = Ipv4Addr::UNSPECIFIED;
    let discover =
        |patience| ask(&guest.host, Kind::Discover, nobody, Ipv4Addr::BROADCAST, patience);
    it.lock()?;
    let offer = discover(Duration::from_secs(20))?;
    assert_eq!(offer.map(|it| it.kind), Some(Kind::Offer));
    assert_eq!(server.heard(), [Kind::Discover]);
    it.configure("[allow]\ninternal = []\n")?;
    it.lock()?;
    assert_eq!(discover(Duration::from_secs(1))?, None);
    Ok(())
}

pub fn bridge_guest_does_not_reach_the_internet() -> Outcome {
    let from_guest = |guest: &Host| -> Result<()> {
        from_anywhere().iter().try_for_each(|shot| shot.fire(guest))?;
        guest.output("ping", &["-c1", "-W1", "1.1.1.1"]).map(drop)
    };
    for masquerade in [false, true] {
        let it = LockedLab::new()?;
        let guest = guest(&it.lab, "br-test", "veth123", 1)?;
        if masquerade {
            publish(&it.lab)?;
        }
        let seen = it.during(|_| from_guest(&guest.host))?;
        for shot in from_anywhere() {
            if !shot.is_in(&seen) {
                return Err(format!("control: {}", seen.report.summary(20)).into());
            }
        }
        seen.must_show("ICMP type 8")?;
        it.lock()?;
        it.during(|_| from_guest(&guest.host))?.must_be_clean()?;
        crate::shot::remove_routing_guard(&it.lab)?;
        it.during(|_| from_guest(&guest.host))?.must_be_clean()?;
    }
    Ok(())
}

/// Published ports that lead back to the Internet, or a mark that the guest's packets get here.
pub fn bridge_guest_with_foreign_rules() -> Outcome {
    let it = LockedLab::new()?;
    let guest = guest(&it.lab, "br-test", "veth123", 1)?;
    nft(
        &it.lab,
        "table inet foreign {
            chain prerouting { type filter hook prerouting priority -150; meta mark set 0x6b73; }
            chain nat { type nat hook prerouting priority -100;
                udp dport 5300 dnat ip to 1.1.1.1:53
            }
        }",
    )?;
    let shots = [
        Shot::udp("marked by us", "1.1.1.1:53"),
        Shot::udp("translated", "172.18.1.1:5300"),
        Shot::udp("clear to the server", "198.51.100.7:51820"),
        Shot::udp("shape to the server", "198.51.100.7:51820").wireguard(1),
    ];
    let send = |_: &Lab| shots.iter().try_for_each(|shot| shot.fire(&guest.host));
    let seen = it.during(send)?;
    if let Some(shot) = shots.iter().find(|shot| !shot.is_in(&seen)) {
        return Err(format!("control: {:?}: {}", shot.name(), seen.report.summary(20)).into());
    }
    it.lock()?;
    it.during(send)?.must_be_clean()?;
    Ok(())
}

pub fn bridge_two_internal_bridges_talk() -> Outcome {
    let it = LockedLab::new()?;
    let first = guest(&it.lab, "br-one", "veth1", 1)?;
    let second = guest(&it.lab, "br-two", "veth2", 2)?;
    let to_second =
        [(By::Ping, "172.18.2.2"), (By::Tcp, "172.18.2.2:80"), (By::Udp, "[fd18:2::2]:53")];
    let to_first = [(By::Ping, "fd18:1::2"), (By::Udp, "172.18.1.2:53")];
    it.lock()?;
    talks(&first.host, &to_second)?;
    talks(&second.host, &to_first)?;
    it.configure("[allow]\ninternal = [\"br-one\"]\n")?;
    it.lock()?;
    is_mute(&first.host, &to_second)?;
    is_mute(&second.host, &to_first)?;
    Ok(())
}

/// Puts the NIC into the bridge; the bridge takes over its addresses.
pub fn enslave_nic(lab: &Lab, bridge: &str) -> Result<()> {
    lab.client.ip(&format!(
        "address flush dev {CLIENT_LINK} scope global
         link set {CLIENT_LINK} master {bridge}
         address add {CLIENT_V4}/24 dev {bridge}
         address add {CLIENT_V6}/64 dev {bridge} nodad
         route replace default via {ROUTER_V4}
         route replace ::/0 via {ROUTER_LINK_LOCAL} dev {bridge}"
    ))
}

/// Gives the guest addresses of the LAN, so that its frames need no routing here.
pub fn join_lan(guest: &Host) -> Result<()> {
    guest.ip(&format!(
        "address add 192.168.1.60/24 dev {CLIENT_LINK}
         address add 2001:db8:1::60/64 dev {CLIENT_LINK} nodad
         route replace default via {ROUTER_V4}
         route replace ::/0 via {ROUTER_LINK_LOCAL} dev {CLIENT_LINK}"
    ))
}

/// An internal bridge that is none: its guests' frames and the host's own would leave by the NIC.
pub fn bridge_with_the_nic_leaks_nothing() -> Outcome {
    let everybody = |lab: &Lab, guest: &Host| -> Result<()> {
        from_anywhere().iter().try_for_each(|shot| shot.fire(guest))?;
        guest.output("ping", &["-c1", "-W1", "192.168.1.20"])?;
        Shot::frame("guest frame", "9.9.9.9:53").fire(guest)?;
        fire(lab, &host_shots())
    };
    for lock_first in [false, true] {
        let it = LockedLab::new()?;
        let guest = guest(&it.lab, "br-test", "veth123", 1)?;
        if lock_first {
            it.lock()?;
        }
        enslave_nic(&it.lab, "br-test")?;
        join_lan(&guest.host)?;
        if !lock_first {
            eventually("the guest is on the LAN", || {
                let near = ["-c1", "-W1", "192.168.1.1"];
                Ok(guest.host.output("ping", &near)?.status.success())
            })?;
            let seen = it.during(|lab| everybody(lab, &guest.host))?;
            seen.must_show("guest frame")?;
            for shot in from_anywhere().iter().chain(&host_shots()) {
                if !shot.is_in(&seen) {
                    let summary = seen.report.summary(20);
                    return Err(format!("control: {}: {summary}", shot.name()).into());
                }
            }
            it.lock()?;
        }
        it.during(|lab| everybody(lab, &guest.host))?.must_be_clean()?;
        it.lock()?;
        it.during(|lab| everybody(lab, &guest.host))?.must_be_clean()?;
        // What may stay does.
        talks(&it.lab.client, &[(By::Udp, "172.18.1.2:53")])?;
    }
    Ok(())
}

fn host_shots() -> Vec<Shot> {
    vec![
        Shot::udp("host dns4", "1.1.1.1:53"),
        Shot::udp("host dns6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("8.8.8.8:443"),
        Shot::udp("host bound", "1.1.1.1:53").through("br-test"),
        Shot::frame("host frame", "1.1.1.1:53").through("br-test"),
        Shot::frame("host frame on the nic", "1.1.1.1:53"),
    ]
}
