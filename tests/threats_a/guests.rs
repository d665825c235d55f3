//! Containers and guests: threats 12 to 17.

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Capture, Host, Lab, Result};

use crate::common::{LockedLab, canary, reaches};
use crate::senders::{DISGUISED, Sender, all_leaked, send_from};

/// What a container sends.
const SENDERS: [Sender; 10] = [
    ("udp4", None),
    ("udp6", None),
    ("tcp4", Some("-> 1.1.1.1:7001")),
    ("tcp6", Some("-> [2606:4700:4700::1111]:7002")),
    ("ping4", None),
    ("ping6", None),
    ("udp4_mark_elsewhere", None),
    ("header4_spoofed", None),
    ("packet_udp", None),
    ("packet_vlan", None),
];

/// Of a routed container the router's own frames stay on its wire.
const ROUTED: usize = 8;

fn container() -> Result<Host> {
    let it = Host::new("container")?;
    it.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    Ok(it)
}

/// A container behind the client, on a network of its own.
fn routed(lab: &Lab) -> Result<Host> {
    let container = container()?;
    lab.client.sysctl("net/ipv4/ip_forward", "1")?;
    lab.client.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    lab.client.ip(&format!(
        "link add veth9 type veth peer name {CLIENT_LINK} netns {}
         address add 10.88.0.1/24 dev veth9
         address add 2001:db8:88::1/64 dev veth9
         link set veth9 up",
        container.path()
    ))?;
    container.ip(&format!(
        "address add 10.88.0.2/24 dev {CLIENT_LINK}
         address add 2001:db8:88::2/64 dev {CLIENT_LINK} nodad
         link set {CLIENT_LINK} up
         route add default via 10.88.0.1
         route add ::/0 via 2001:db8:88::1"
    ))?;
    reaches(&container, "10.88.0.1")?;
    reaches(&container, "2001:db8:88::1")?;
    Ok(container)
}

/// Puts a container on the LAN by a link that it has already.
fn on_the_lan(container: &Host) -> Result<()> {
    container.ip(&format!(
        "address add 192.168.1.78/24 dev {CLIENT_LINK}
         address add 2001:db8:1::78/64 dev {CLIENT_LINK} nodad
         link set {CLIENT_LINK} up
         route add default via {ROUTER_V4}
         route add ::/0 via {ROUTER_LINK_LOCAL} dev {CLIENT_LINK}"
    ))?;
    reaches(container, &ROUTER_V4.to_string())?;
    reaches(container, &ROUTER_V6.to_string())
}

/// A bridge of this name in the client, with its link and a container in it.
fn bridged(lab: &Lab, bridge: &str) -> Result<Host> {
    let container = container()?;
    lab.client.ip(&format!(
        "link add {bridge} type bridge forward_delay 0 mcast_snooping 0
         link add veth9 type veth peer name {CLIENT_LINK} netns {}
         link set veth9 master {bridge} up
         address flush dev {CLIENT_LINK}
         link set {CLIENT_LINK} master {bridge}
         address add {CLIENT_V4}/24 dev {bridge}
         address add {CLIENT_V6}/64 dev {bridge} nodad
         link set {bridge} up
         route add default via {ROUTER_V4}
         route replace ::/0 via {ROUTER_LINK_LOCAL} dev {bridge}",
        container.path()
    ))?;
    on_the_lan(&container)?;
    for address in [ROUTER_V4.to_string(), ROUTER_V6.to_string()] {
        reaches(&lab.client, &address)?;
    }
    Ok(container)
}

fn stopped(it: &LockedLab, container: &Host, senders: &[Sender]) -> Outcome {
    let send = |_: &Lab| send_from(container, CLIENT_LINK, senders);
    all_leaked(&it.during(send)?, senders)?;
    it.lock()?;
    it.during(send)?.must_be_clean()?;
    Ok(())
}

pub fn t12_routed_container() -> Outcome {
    let it = LockedLab::new()?;
    let container = routed(&it.lab)?;
    stopped(&it, &container, &SENDERS[..ROUTED])
}

pub fn t12_routed_container_by_the_table_alone() -> Outcome {
    let it = LockedLab::table_alone("")?;
    let container = routed(&it.lab)?;
    stopped(&it, &container, &SENDERS[..ROUTED])
}

pub fn t13_container_bridged_with_the_link() -> Outcome {
    let it = LockedLab::new()?;
    let container = bridged(&it.lab, "bridge9")?;
    stopped(&it, &container, &SENDERS)
}

/// A bridge that is taken for internal by its name, but has the link in it.
pub fn t13_link_in_an_internal_bridge() -> Outcome {
    let it = LockedLab::new()?;
    let container = bridged(&it.lab, "br-nine")?;
    stopped(&it, &container, &SENDERS)?;
    let bound = [("udp4_bound", None), ("udp6_bound", None), ("packet_udp", None)];
    let send = |lab: &Lab| send_from(&lab.client, "br-nine", &bound);
    it.during(send)?.must_be_clean()?;
    it.unlock()?;
    all_leaked(&it.during(send)?, &bound)?;
    Ok(())
}

pub fn t14_macvlan_in_a_container() -> Outcome {
    let it = LockedLab::new()?;
    let container = macvlan(&it.lab)?;
    stopped(&it, &container, &SENDERS)
}

/// What a container manager gives its containers is enough: CAP_NET_RAW.
pub fn t69_macvlan_in_disguise() -> Outcome {
    let it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\"]\n")?;
    let container = macvlan(&it.lab)?;
    let act = |_: &Lab| send_from(&container, CLIENT_LINK, &DISGUISED);
    all_leaked(&it.during(act)?, &DISGUISED)?;
    it.lock()?;
    it.during(act)?.must_be_clean()?;
    Ok(())
}

/// A macvlan link of the client's in a container.
fn macvlan(lab: &Lab) -> Result<Host> {
    let container = container()?;
    lab.client.ip(&format!(
        "link add link {CLIENT_LINK} name mac9 type macvlan mode bridge
         link set mac9 netns {}",
        container.path()
    ))?;
    container.ip(&format!("link set mac9 name {CLIENT_LINK}"))?;
    on_the_lan(&container)?;
    Ok(container)
}

/// As an attacker with CAP_NET_ADMIN or a container manager would: after the lock.
pub fn t14_macvlan_made_under_the_lock() -> Outcome {
    let it = LockedLab::new()?;
    it.lock()?;
    let container = container()?;
    it.lab.client.ip(&format!(
        "link add link {CLIENT_LINK} name mac9 type macvlan mode bridge
         link set mac9 netns {}",
        container.path()
    ))?;
    container.ip(&format!(
        "link set mac9 name {CLIENT_LINK}
         address add 192.168.1.78/24 dev {CLIENT_LINK}
         address add 2001:db8:1::78/64 dev {CLIENT_LINK} nodad
         link set {CLIENT_LINK} up
         route add default via {ROUTER_V4}
         route add ::/0 via {ROUTER_LINK_LOCAL} dev {CLIENT_LINK}"
    ))?;
    let send = |_: &Lab| send_from(&container, CLIENT_LINK, &SENDERS);
    it.during(send)?.must_be_clean()?;
    it.unlock()?;
    all_leaked(&it.during(send)?, &SENDERS)?;
    Ok(())
}

/// A limit: rules belong to a namespace, and the link leaves it. It needs CAP_NET_ADMIN.
pub fn t15_link_moved_away_leaks_in_spite_of_the_lock() -> Outcome {
    let it = LockedLab::new()?;
    it.lock()?;
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    let elsewhere = container()?;
    it.lab.client.ip(&format!("link set {CLIENT_LINK} netns {}", elsewhere.path()))?;
    on_the_lan(&elsewhere)?;
    eventually("the canary on the wire", || {
        send_from(&elsewhere, CLIENT_LINK, &[("udp4", None)])?;
        let frames = capture.report().frames;
        let canary = canary("udp4");
        Ok(frames.iter().any(|it| it.bytes.windows(canary.len()).any(|part| part == canary)))
    })?;
    Ok(())
}

/// The mark opens the way to a server, but not for what a container sends: it is lost on the way
/// into the client's namespace, and what is forwarded needs more than a mark.
pub fn t17_mark_set_in_a_container() -> Outcome {
    const MARKED: [Sender; 2] = [("marked_like_wireguard", None), ("marked_to_server", None)];
    type Attach = fn(&Lab) -> Result<Host>;
    let ways: [Attach; 2] = [routed, |lab| bridged(lab, "bridge9")];
    for attach in ways {
        let it = LockedLab::new()?;
        let container = attach(&it.lab)?;
        stopped(&it, &container, &MARKED)?;
    }
    Ok(())
}

/// A macvlan link keeps the mark, which opens the servers' ports to WireGuard's messages, no more.
pub fn t17_mark_on_macvlan() -> Outcome {
    const MARKED: [Sender; 3] =
        [("udp4_mark_elsewhere", None), ("udp4_clear_to_server", None), ("marked_to_server", None)];
    let it = LockedLab::new()?;
    let container = macvlan(&it.lab)?;
    stopped(&it, &container, &MARKED)
}
