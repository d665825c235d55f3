//! Whether the test can fail: in a network namespace of its own, first without a lock, then with one.
//!
//! Without, each probe must see itself get out; with, none may. The namespace has one link, which
//! leads nowhere.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use serde::Serialize;

use super::guest::elsewhere;
use super::kernel;
use super::probe::{self, Probe};
use super::report::Machine;
use super::run::{Subject, Test};
use crate::lock;
use crate::netlink::{self, Family, Socket};
use crate::policy::{MessageShape, Policy, Protocol, Server, Tunnel};

/// The link out of the namespace.
const UPLINK: &str = "uplink";
/// Its addresses and routers: for documentation (RFC 5737, RFC 3849).
const ADDRESSES: [(&str, &str); 2] =
    [("192.0.2.2/24", "192.0.2.1"), ("2001:db8::2/64", "2001:db8::1")];
/// Until what was sent is seen: nothing is far here.
const WAIT: Duration = Duration::from_millis(500);
/// Links and routes are looked at once a second, which is not what is checked.
const EVERY: Duration = Duration::from_secs(1);

/// What became of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The probe's name.
    pub name: &'static str,
    /// It saw itself get out where there is no lock.
    pub finds: bool,
    /// It saw nothing where there is one.
    pub quiet: bool,
    /// Why it could not be tried.
    pub failed: Option<String>,
}

/// Leaves the machine's network, and checks every probe. To be called while there is one thread.
///
/// # Errors
/// No private namespace can be had; those of links and of the lock.
pub fn run() -> io::Result<Vec<Checked>> {
    leave()?;
    let _outside = build()?;
    let policy = policy();
    let machine = Machine {
        system: String::new(),
        kernel: String::new(),
        architecture: String::new(),
        killswitch: String::new(),
        ruleset_sha256: String::new(),
        state: String::new(),
        degraded: Vec::new(),
        configuration: String::new(),
    };
    let subject = Subject {
        policy: policy.clone(),
        configuration: None,
        machine,
        repeat: String::new(),
        damaged: false,
    };
    let (mut test, mut probes, _guest) = Test::begin(subject, true)?;
    let open = leaks(&mut test, &mut probes)?;
    lock::lock(&policy).map_err(io::Error::other)?;
    // What was sent before is past the lock.
    test.attend(WAIT, EVERY)?;
    let before = test.leaks();
    let locked = leaks(&mut test, &mut probes)?;
    let check = |probe: &Probe| {
        let at = usize::from(probe.number);
        Checked {
            name: probe.name,
            finds: open[at] > 0,
            quiet: locked[at] == before[at],
            failed: probe.failed.clone(),
        }
    };
    Ok(probes.iter().map(check).collect())
}

fn leaks(test: &mut Test, probes: &mut [Probe]) -> io::Result<Vec<u64>> {
    probe::fire(probes);
    test.attend(WAIT, EVERY)?;
    Ok(test.leaks())
}

/// As root, or as root of a user namespace.
fn leave() -> io::Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    // The maps belong to root as long as nobody may look at this process. It has read no key.
    nix::sys::prctl::set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER)?;
    // Without this the kernel takes no gid_map from the unprivileged (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// A link, its addresses and routers, and a machine that forwards.
fn build() -> io::Result<File> {
    let socket = Socket::open(Family::Route)?;
    let outside = elsewhere(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    })?;
    kernel::add_pair(&socket, UPLINK, UPLINK, outside.as_fd())?;
    let uplink = index(&socket)?;
    const LOOPBACK: u32 = 1;
    kernel::set_up(&socket, LOOPBACK, true)?;
    kernel::set_up_without_neighbours(&socket, uplink)?;
    elsewhere(|| {
        setns(&outside, CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::open(Family::Route)?;
        kernel::set_up(&socket, index(&socket)?, true)
    })?;
    for (net, router) in ADDRESSES {
        let (Ok(net), Ok(router)) = (net.parse::<ipnet::IpNet>(), router.parse::<IpAddr>()) else {
            continue;
        };
        let added = kernel::add_address(&socket, uplink, net)
            .and_then(|()| kernel::add_default_route(&socket, uplink, router));
        // A kernel without IPv6 has none to leak.
        if net.addr().is_ipv4() {
            added?;
        }
    }
    let _ = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    Ok(outside)
}

fn index(socket: &Socket) -> io::Result<u32> {
    let link = netlink::links(socket)?.into_iter().find(|it| it.name == UPLINK);
    Ok(link.ok_or(io::ErrorKind::NotFound)?.index)
}

/// A tunnel that is not there, and a server.
fn policy() -> Policy {
    let tunnel = Tunnel {
        interface: "wg0".into(),
        kinds: ["wireguard"].into(),
        addresses: [IpAddr::from([10, 64, 0, 2])].into(),
    };
    let server = Server {
        endpoint: ([198, 51, 100, 7], 51820).into(),
        protocol: Protocol::Udp,
        shape: MessageShape::Wireguard,
    };
    Policy { tunnel: Some(tunnel), servers: [server].into(), dhcp: true, ..Policy::strictest() }
}
