//! Who could open the lock, or send past it.
//!
//! Root's own processes are no finding: root can open any lock, and every machine has dozens of
//! them. What is found is who need not be able to.

use super::known;
use crate::audit::facts::Process;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};

/// System services that have CAP_NET_ADMIN or CAP_NET_RAW without being root, by design of their
/// packages, and programs that have them for the moment they run.
const CAPABLE: [&str; 18] = [
    "systemd-networkd",
    "systemd-resolved",
    "dnsmasq",
    "dhcpcd",
    "avahi-autoipd",
    "ping",
    "arping",
    "mtr-packet",
    "fping",
    "traceroute",
    "chronyd",
    "ntpd",
    "named",
    "openvpn",
    "lldpd",
    "kea-dhcp4",
    "bird",
    "zebra",
];

/// Programs that configure links and need packet sockets for it: leases, 802.1X, LLDP.
const LINK_KEEPERS: [&str; 17] = [
    "systemd-networkd",
    "NetworkManager",
    "nm-dhcp-helper",
    "dhclient",
    "dhcpcd",
    "udhcpc",
    "busybox",
    "wpa_supplicant",
    "iwd",
    "connmand",
    "hostapd",
    "lldpd",
    "wickedd-dhcp4",
    "dhcpd",
    "kea-dhcp4",
    "lldpad",
    "avahi-autoipd",
];

/// A program that the system's packages installed, outside of containers.
fn is_one_of(process: &Process, names: &[&str]) -> bool {
    let program = process.program.rsplit_once('/');
    let (directory, name) = program.unwrap_or_default();
    let installed = ["/usr/", "/lib/", "/sbin", "/bin"].iter().any(|it| directory.starts_with(it));
    process.container.is_none()
        && installed
        && !directory.starts_with("/usr/local")
        && names.contains(&name)
}

fn describe(process: &Process) -> String {
    match process.id {
        0 => process.name.clone(),
        id => {
            format!("process {id} ({}, user {}, {})", process.name, process.user, process.program)
        }
    }
}

fn end(process: &Process) -> String {
    match process.id {
        0 => "ss --packet --processes".into(),
        id => format!("systemctl status {id}; kill {id}"),
    }
}

fn capabilities_of(process: &Process) -> &'static str {
    match (process.admin, process.raw) {
        (true, true) => "CAP_NET_ADMIN, CAP_NET_RAW",
        (true, false) => "CAP_NET_ADMIN",
        (false, true) => "CAP_NET_RAW",
        (false, false) => "neither",
    }
}

/// Programs in a sandbox have a process namespace of their own, too (Flatpak, browsers), but no
/// capability: those are like any other program.
pub(super) fn containers(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for process in known(&facts.processes)?.seen.iter().filter(|it| it.admin || it.raw) {
        let Some(sign) = &process.container else { continue };
        let what = format!("{}: {}; {sign}", describe(process), capabilities_of(process));
        let cure = "run the container without --network=host, or with --cap-drop=NET_RAW --cap-drop=NET_ADMIN";
        found.find(&CONTAINER_HOST_NETWORK, what, cure);
    }
    Ok(found)
}

pub(super) fn capabilities(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    let capable = known(&facts.processes)?.seen.iter().filter(|it| it.admin || it.raw);
    let (mut root, mut services) = (0, Vec::new());
    for process in capable.filter(|it| it.container.is_none() && !it.ours) {
        match process.user {
            0 => root += 1,
            _ if is_one_of(process, &CAPABLE) => services.push(process.name.as_str()),
            _ => {
                let what = format!("{}: {}", describe(process), capabilities_of(process));
                found.find(&CAPABILITY, what, end(process));
            }
        }
    }
    let hidden = known(&facts.processes)?.hidden;
    if hidden > 0 {
        found.note(format!(
            "{hidden} processes cannot be looked into: this root lacks capabilities"
        ));
    }
    if root > 0 {
        found.note(format!("root's processes, which can open any lock: {root}"));
    }
    if !services.is_empty() {
        found.note(format!("system services with such capabilities: {}", services.join(", ")));
    }
    Ok(found)
}

pub(super) fn packet_sockets(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for process in
        known(&facts.processes)?.seen.iter().filter(|it| it.packet_sockets > 0 && !it.ours)
    {
        match is_one_of(process, &LINK_KEEPERS) {
            true => found.note(format!("{}: packet sockets to configure links", describe(process))),
            false => found.find(&PACKET_SOCKET, describe(process), end(process)),
        }
    }
    Ok(found)
}

pub(super) fn xdp_sockets(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for process in known(&facts.processes)?.seen.iter().filter(|it| it.xdp_sockets > 0) {
        found.find(&AF_XDP_SOCKET, describe(process), end(process));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use super::*;
    use crate::audit::facts::Processes;

    fn with(process: Process) -> Facts {
        let mut facts = facts();
        let seen = vec![Process { id: 7, name: "x".into(), ..process }];
        facts.processes = Ok(Processes { seen, hidden: 0 });
        facts
    }

    fn program(path: &str) -> Process {
        Process { program: path.into(), user: 101, ..Process::default() }
    }

    #[test]
    fn who_is_not_root_and_no_known_service_is_found() {
        let strange = Process { raw: true, ..program("/usr/bin/strange") };
        assert_eq!(ids(&with(strange.clone()), &wanted()), ["capability"]);
        assert_eq!(ids(&with(Process { user: 0, ..strange.clone() }), &wanted()), [""; 0]);
        let known = Process { admin: true, ..program("/usr/lib/systemd/systemd-networkd") };
        assert_eq!(ids(&with(known), &wanted()), [""; 0]);
        let posing = Process { admin: true, ..program("/home/x/systemd-networkd") };
        assert_eq!(ids(&with(posing), &wanted()), ["capability"]);
        let caged = Process { container: Some("docker".into()), user: 0, ..strange };
        assert_eq!(ids(&with(caged), &wanted()), ["container-host-network"]);
        let harmless = Process { container: Some("own".into()), ..program("/usr/bin/firefox") };
        assert_eq!(ids(&with(harmless), &wanted()), [""; 0]);
    }

    #[test]
    fn packet_sockets_are_for_those_who_configure_links() {
        let holds = |path| Process { packet_sockets: 1, user: 0, ..program(path) };
        assert_eq!(ids(&with(holds("/usr/bin/python3")), &wanted()), ["packet-socket"]);
        assert_eq!(ids(&with(holds("/usr/sbin/wpa_supplicant")), &wanted()), [""; 0]);
        let ours = Process { ours: true, ..holds("/usr/bin/killswitch") };
        assert_eq!(ids(&with(ours), &wanted()), [""; 0]);
        let unseen = Process { id: 0, ..holds("") };
        assert_eq!(ids(&with(unseen), &wanted()), ["packet-socket"]);
    }

    #[test]
    fn an_xdp_socket_is_critical_whoever_holds_it() {
        let holds = Process { xdp_sockets: 1, user: 0, ..program("/usr/bin/x") };
        assert_eq!(ids(&with(holds), &wanted()), ["af-xdp-socket"]);
    }
}
