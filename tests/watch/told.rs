//! What is told of changes, and what is not.

use std::future::Future;
use std::process::{Command, Stdio};
use std::time::Duration;

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Error, Host, Result};
use killswitch::lock::{self, Keeper};
use killswitch::policy::Policy;
use killswitch::routing;
use killswitch::watch::{Change, Culprit, Observer, Watch};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use std::os::fd::AsRawFd;

/// Never to be reached: machines are noisy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a future inside a host, on a runtime like the daemon's.
pub fn within<T: Send, F: Future<Output = Result<T>>>(
    host: &Host,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.during("runtime")?.block_on(async {
            tokio::time::timeout(PATIENCE, work()).await.during("waited in vain")?
        })
    })?
}

/// Runs a command here; it must succeed. Its process id.
pub fn run(line: &str) -> Result<u32> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let child = Command::new(program).args(words).stderr(Stdio::piped()).spawn().during(line)?;
    let pid = child.id();
    let output = child.wait_with_output().during(line)?;
    match output.status.success() {
        true => Ok(pid),
        false => Err(Error::new(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// All changes up to the first that `ends` is true of, that one included.
pub async fn until(watch: &mut Watch, ends: impl Fn(&Change) -> bool) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    loop {
        let change = watch.next().await.during("watch")?;
        let last = ends(&change);
        changes.push(change);
        if last {
            return Ok(changes);
        }
    }
}

fn is_told(changes: &[Change]) -> bool {
    changes.iter().any(|it| it.rules || it.tables.is_some())
}

pub fn table_changes_of_others_are_told() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        lock::lock(&Policy::strictest()).during("lock")?;
        let mut watch = Watch::open().during("watch")?;
        run("nft add table inet other")?;
        run("nft add table ip killswitch")?;
        run("ip address add 192.0.2.77/32 dev lo")?;
        let changes = until(&mut watch, |change| change.network).await?;
        assert!(!is_told(&changes), "{changes:?}");
        for line in [
            "nft add rule inet killswitch output accept",
            "nft add chain netdev killswitch more",
            "nft delete table netdev killswitch",
            "nft flush ruleset",
        ] {
            let pid = run(line)?;
            let changes = until(&mut watch, |change| change.tables.is_some()).await?;
            let Some(Culprit::Process { pid: told, name }) = &changes[changes.len() - 1].tables
            else {
                return Err(Error::new(format!("{line}: {changes:?}")));
            };
            assert_eq!(name, "nft", "{line}");
            // The kernel numbers it as the initial namespace does.
            if is_initial_pid_namespace() {
                assert_eq!(*told, pid, "{line}");
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn is_initial_pid_namespace() -> bool {
    // PROC_PID_INIT_INO (include/linux/proc_ns.h)
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|it| it.ends_with("pid:[4026531836]"))
}

pub fn own_changes_are_not_told() -> Outcome {
    for (disregarded, host) in [(true, Host::new("client")?), (false, Host::new("client")?)] {
        within(&host, || async {
            let mut keeper = Keeper::open().during("keeper")?;
            let mut watch = Watch::open().during("watch")?;
            for (family, port) in keeper.ports().during("ports")? {
                if disregarded {
                    watch.disregard(family, port);
                }
            }
            let mut policy = Policy::strictest();
            for mark in 1..4 {
                policy.mark = mark;
                policy.dhcp = mark == 2;
                keeper.hold(&policy).during("hold")?;
            }
            keeper.unlock().during("unlock")?;
            run("ip address add 192.0.2.77/32 dev lo")?;
            let changes = until(&mut watch, |change| change.network).await?;
            assert_eq!(is_told(&changes), !disregarded, "{changes:?}");
            Ok(())
        })?;
    }
    Ok(())
}

pub fn deleted_rules_and_routes_are_told() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        let mut keeper = Keeper::open().during("keeper")?;
        let mut watch = Watch::open().during("watch")?;
        for (family, port) in keeper.ports().during("ports")? {
            watch.disregard(family, port);
        }
        let policy = Policy::strictest();
        keeper.hold(&policy).during("hold")?;
        let table = routing::TABLE;
        let first = routing::PREFERENCES.start();
        let guard = routing::Guard::from_policy(&policy);
        for line in [
            "ip rule flush protocol kernel".to_owned(),
            format!("ip -6 rule add pref {} lookup main", first + 2),
            format!("ip route flush table {table}"),
            // `ip` spares the last route of IPv6 when it flushes.
            format!("ip -6 route add 2001:db8::/32 dev lo table {table}"),
        ] {
            run(&line)?;
            until(&mut watch, |change| change.rules).await?;
            keeper.hold(&policy).during("hold")?;
            let live = routing::read().during("read")?;
            assert!(live.missing(&guard).is_empty(), "{line}");
        }
        // As NetworkManager does; an IPv6 route that refuses hangs on loopback.
        for value in ["1", "0"] {
            std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", value).during("sysctl")?;
        }
        until(&mut watch, |change| change.rules).await?;
        assert!(!routing::read().during("read")?.missing(&guard).is_empty());
        keeper.hold(&policy).during("hold")?;
        assert!(routing::read().during("read")?.missing(&guard).is_empty());
        // They go with loopback itself, too; what tells of it may be the link alone.
        let mut observer = Observer::open().during("observer")?;
        observer.observe(None).await.during("observe")?;
        run("ip link set lo down")?;
        until(&mut watch, |change| change.network).await?;
        assert!(observer.observe(None).await.during("observe")?.links_changed);
        assert!(!observer.observe(None).await.during("observe")?.links_changed);
        Ok(())
    })?;
    Ok(())
}

/// One event more than room: all is said to have changed, and the state read then is right.
pub fn an_overrun_is_told_and_made_good() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        lock::lock(&Policy::strictest()).during("lock")?;
        let mut watch = Watch::with_buffer(4096).during("watch")?;
        let mut observer = Observer::open().during("observer")?;
        run("ip link add eth0 type veth peer name far")?;
        run("ip link set far up")?;
        run("ip link set eth0 up")?;
        for number in 0..100 {
            run(&format!("ip address add 192.0.2.{number}/24 dev eth0"))?;
        }
        run("ip route add default via 192.0.2.200")?;
        run("nft flush ruleset")?;
        let changes = until(&mut watch, |change| change.lost && change.tables.is_some()).await?;
        let last = &changes[changes.len() - 1];
        assert!(last.network && last.rules, "{last:?}");
        let observed = observer.observe(None).await.during("observe")?;
        let uplink = observed.network.v4.ok_or("no way out").map_err(Error::new)?;
        assert_eq!(uplink.addresses.len(), 100);
        // And it goes on.
        drop(changes);
        run("ip rule add pref 27577 lookup main")?;
        until(&mut watch, |change| change.rules).await?;
        Ok(())
    })?;
    Ok(())
}

/// Whoever has CAP_NET_ADMIN may send to a port and to a group (threat 61).
pub fn messages_of_others_are_not_events() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        let mut watch = Watch::open().during("watch")?;
        // RTM_DELRULE; NFT_MSG_DELTABLE and NFT_MSG_NEWGEN.
        let mut named = vec![1, 0, 0, 0, 15, 0, 1, 0];
        named.extend(b"killswitch\0\0");
        let mut tables = message(10 << 8 | 2, &named);
        tables.extend(message(10 << 8 | 15, &[0; 4]));
        for (protocol, group, bytes) in [
            (SockProtocol::NetlinkRoute, 8, message(33, &[2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0])),
            (SockProtocol::NetlinkNetFilter, 7, tables),
        ] {
            let spoof =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
                    .during("socket")?;
            let listeners = listeners(protocol as i32)?;
            assert!(!listeners.is_empty());
            for &port in &listeners {
                let before = waiting(protocol as i32, port)?;
                for to in [NetlinkAddr::new(port, 0), NetlinkAddr::new(0, 1 << (group - 1))] {
                    // The kernel, to which the second goes too, may refuse it.
                    let _ = sendto(spoof.as_raw_fd(), &bytes, &to, MsgFlags::empty());
                }
                let after = waiting(protocol as i32, port)?;
                assert!(after > before, "nothing arrived at port {port}");
            }
        }
        run("ip address add 192.0.2.77/32 dev lo")?;
        let changes = until(&mut watch, |change| change.network).await?;
        assert!(!is_told(&changes), "{changes:?}");
        // The same from the kernel is told.
        run("ip rule add pref 27577 lookup main")?;
        run("ip rule del pref 27577")?;
        until(&mut watch, |change| change.rules).await?;
        Ok(())
    })?;
    Ok(())
}

fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((16 + payload.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(payload);
    bytes
}

/// Columns of /proc/net/netlink: protocol, port, groups, bytes waiting.
fn sockets() -> Result<Vec<(i32, u32, u32, u64)>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").during("netlink")?;
    let row = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let protocol = words.next()?.parse().ok()?;
        let port = words.next()?.parse().ok()?;
        let groups = u32::from_str_radix(words.next()?, 16).ok()?;
        Some((protocol, port, groups, words.next()?.parse().ok()?))
    };
    Ok(text.lines().skip(1).filter_map(row).collect())
}

fn listeners(protocol: i32) -> Result<Vec<u32>> {
    let all = sockets()?;
    Ok(all.iter().filter(|it| it.0 == protocol && it.2 != 0 && it.1 != 0).map(|it| it.1).collect())
}

fn waiting(protocol: i32, port: u32) -> Result<u64> {
    let all = sockets()?;
    let found = all.iter().find(|it| it.0 == protocol && it.1 == port).map(|it| it.3);
    found.ok_or_else(|| Error::new("the socket is gone"))
}

/// Nobody wakes where nothing happens; and what happens afterwards is told.
pub fn nothing_runs_while_nothing_happens() -> Outcome {
    const PAUSE: Duration = Duration::from_secs(3);
    let host = Host::new("client")?;
    within(&host, || async {
        let mut watch = Watch::open().during("watch")?;
        let before = (switches()?, cpu_time()?);
        let silence = tokio::time::timeout(PAUSE, watch.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        let (woken, worked) = (switches()? - before.0, cpu_time()? - before.1);
        println!("woken {woken} times, worked {worked:?} in {PAUSE:?}");
        // The end of the pause is one.
        assert!(woken <= 3 && worked < PAUSE / 20, "{woken} {worked:?}");
        run("ip address add 192.0.2.77/32 dev lo")?;
        until(&mut watch, |change| change.network).await?;
        Ok(())
    })?;
    Ok(())
}

pub fn switches() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/status").during("status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|it| it.trim().parse().ok()).ok_or_else(|| Error::new("no switches"))
}

pub fn cpu_time() -> Result<Duration> {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    Ok(nix::time::clock_gettime(clock).during("clock")?.into())
}
