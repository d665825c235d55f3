//! Who owns the tables, and what happens to them when the owner changes.

use std::io::{BufRead, BufReader, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::addresses::*;
use killswitch::lab::harness::Outcome;
use killswitch::lab::host::Process;
use killswitch::lab::traffic::Flood;
use killswitch::lab::{Capture, Context, Error, Host, Lab, Result};
use killswitch::lock::{self, Keeper};
use killswitch::netfilter;
use killswitch::netlink::{Family as NetlinkFamily, Socket};
use killswitch::policy::Policy;
use killswitch::ruleset::Family;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::common::LockedLab;
use crate::roles;
use crate::told::run;

/// Ports of the tables' owners.
fn owners(host: &Host) -> Result<[Option<u32>; 2]> {
    host.run(|| {
        let socket = Socket::open(NetlinkFamily::Netfilter).during("netlink")?;
        let owner = |family| netfilter::owner(&socket, family).during("owner");
        Ok([owner(Family::Inet)?, owner(Family::Netdev)?])
    })?
}

/// Not asked of nft: 1.0.6 hangs where a chain hooks every link (threat 42).
fn has_tables(host: &Host) -> Result<bool> {
    let live = host.run(lock::read)?.during("read")?;
    Ok(live.inet.is_some() && live.egress.is_some())
}

pub fn a_flush_leaves_what_is_owned() -> Outcome {
    let host = Host::new("client")?;
    host.run(|| -> Result<()> {
        let mut keeper = Keeper::open().during("keeper")?;
        let outcome = keeper.hold(&Policy::strictest()).during("hold")?;
        assert!(outcome.owned && outcome.degraded.is_empty(), "{outcome:?}");
        run("nft flush ruleset")?;
        assert!(run("nft delete table inet killswitch").is_err());
        assert!(run("nft delete table netdev killswitch").is_err());
        let again = keeper.hold(&Policy::strictest()).during("hold")?;
        assert!(again.owned && !again.changed, "{again:?}");
        // The owner itself may still change what it owns, and open it.
        let policy = Policy { dhcp: true, ..Policy::strictest() };
        assert!(keeper.hold(&policy).during("hold")?.changed);
        assert!(keeper.unlock().during("unlock")?);
        let live = lock::read().during("read")?;
        assert!(live.inet.is_none() && live.egress.is_none());
        let anew = keeper.hold(&policy).during("hold")?;
        assert!(anew.owned && anew.changed, "{anew:?}");
        Ok(())
    })??;
    // The test can fail: now there is no owner.
    host.command("nft", &["flush", "ruleset"])?;
    assert!(!has_tables(&host)?);
    Ok(())
}

/// systemd's part: what a service gives it to keep.
struct Store {
    socket: UnixDatagram,
    path: &'static str,
}

impl Store {
    fn new() -> Result<Self> {
        let path = "/run/killswitch-test-notify";
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).during(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(30))).during(path)?;
        Ok(Store { socket, path })
    }

    fn receive(&self) -> Result<(String, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.socket, &mut parts, &mut control, flags).during("notification")?;
        let fd = control.drain().find_map(|it| match it {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), fd))
    }
}

/// What a process says first.
fn first_line(process: &mut Process) -> Result<String> {
    let output = process.child().stdout.take().ok_or_else(|| Error::new("no output"))?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).during("output")?;
    Ok(line.trim().to_owned())
}

fn killed(mut process: Process) -> Result<()> {
    process.child().kill().during("kill")?;
    process.child().wait().during("wait").map(drop)
}

/// Starts this program with a descriptor as systemd passes it.
fn adopter(fd: OwnedFd) -> Command {
    let us = roles::command("adopter");
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "exec 3<&0 </dev/null
         export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=killswitch-tables
         exec \"$0\"",
    ]);
    shell.arg(us.get_program());
    us.get_envs().for_each(|(key, value)| {
        shell.env(key, value.unwrap_or_default());
    });
    shell.stdin(Stdio::from(fd)).stdout(Stdio::piped());
    shell
}

/// The daemon is killed while systemd keeps its socket: the tables keep their owner, and the next
/// daemon is that owner.
pub fn ownership_outlives_the_daemon() -> Outcome {
    let host = Host::new("client")?;
    let store = Store::new()?;
    let mut daemon = roles::command("keeper");
    daemon.env("NOTIFY_SOCKET", store.path).stdout(Stdio::piped());
    let mut daemon = host.start(daemon)?;
    assert_eq!(first_line(&mut daemon)?, "owned true");
    let (words, fd) = store.receive()?;
    assert!(words.contains("FDSTORE=1\nFDNAME=killswitch-tables"), "{words}");
    let fd = fd.ok_or("no descriptor")?;
    let before = owners(&host)?;
    assert!(before[0].is_some() && before[0] == before[1], "{before:?}");
    killed(daemon)?;
    assert_eq!(owners(&host)?, before);
    host.command("nft", &["flush", "ruleset"])?;
    assert!(has_tables(&host)?);
    let mut next = host.start(adopter(fd.try_clone()?))?;
    assert_eq!(first_line(&mut next)?, "parked 1 owned true changed false");
    killed(next)?;
    assert_eq!(owners(&host)?, before);
    // The last copy goes, and with it the ownership, but not the tables.
    drop(fd);
    assert_eq!(owners(&host)?, [None, None]);
    assert!(has_tables(&host)?);
    host.command("nft", &["flush", "ruleset"])?;
    assert!(!has_tables(&host)?);
    Ok(())
}

/// What leaked while `change` ran under a flood, and what was offered.
fn leaked(
    it: &LockedLab,
    start: fn(&Lab) -> Result<Flood>,
    change: impl FnOnce() -> Result<()> + Send,
) -> Result<(u64, u64)> {
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    let flood = start(&it.lab)?;
    let outcome = it.lab.client.run(change)?;
    let flooded = flood.stop()?;
    outcome?;
    let report = capture.stop()?;
    if report.lost > 0 {
        return Err(Error::new(format!("{} frames were not seen", report.lost)));
    }
    Ok((report.leaked_total(), flooded.sent + flooded.refused))
}

fn without_a_leak(
    it: &LockedLab,
    start: fn(&Lab) -> Result<Flood>,
    times: u32,
    before: impl Fn() -> Result<()> + Sync,
) -> Outcome {
    let pause = || {
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    };
    assert!(leaked(it, start, pause)?.0 > 1000, "the flood is not seen");
    it.lock()?;
    let policy = it.policy()?;
    let begin = Instant::now();
    let (leaked, offered) = leaked(it, start, || {
        for _ in 0..times {
            before()?;
            let mut keeper = Keeper::open().during("keeper")?;
            let outcome = keeper.hold(&policy).during("hold")?;
            if !(outcome.owned && outcome.changed && outcome.degraded.is_empty()) {
                return Err(Error::new(format!("{outcome:?}")));
            }
        }
        Ok(())
    })?;
    println!("taken {times} times in {:.1?}: {offered} offered, {leaked} leaked", begin.elapsed());
    assert_eq!(leaked, 0);
    assert!(offered > 100 * u64::from(times), "only {offered} offered");
    Ok(())
}

pub fn orphans_are_taken_without_a_leak() -> Outcome {
    let table = LockedLab::table_alone("")?;
    without_a_leak(&table, Flood::datagrams, 200, || Ok(()))?;
    let guard = LockedLab::new()?;
    without_a_leak(&guard, Flood::frames, 200, || Ok(()))
}

/// Loaded by nft, it does not persist, and never can: the very table has to go.
pub fn the_static_lock_is_replaced_without_a_leak() -> Outcome {
    let it = LockedLab::table_alone("")?;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/nft/lock.nft");
    let text = std::fs::read_to_string(path)?;
    let anew = it.write("lock.nft", &format!("delete table inet killswitch\n{text}"))?;
    let load = format!("nft -f {}", anew.display());
    without_a_leak(&it, Flood::datagrams, 50, || {
        run(&load)?;
        let table = lock::read().during("read")?.inet;
        let flags = table.map(|table| table.flags);
        (flags == Some(0)).then_some(()).ok_or_else(|| Error::new(format!("flags {flags:?}")))
    })
}

pub fn another_owner_is_named() -> Outcome {
    let host = Host::new("client")?;
    host.run(|| -> Result<()> {
        let policy = Policy::strictest();
        let mut first = Keeper::open().during("keeper")?;
        first.hold(&policy).during("hold")?;
        let mut second = Keeper::open().during("keeper")?;
        let outcome = second.hold(&policy).during("hold")?;
        assert!(!outcome.owned && !outcome.changed, "{outcome:?}");
        assert!(outcome.degraded.iter().any(|it| it.contains("is owned by")), "{outcome:?}");
        // What it cannot change, it says; and the routing guard is held all the same.
        run("ip rule flush protocol kernel")?;
        let ntp = [INTERNET_V4.into()].into();
        let other = Policy { ntp, ..policy.clone() };
        assert!(matches!(
            second.hold(&other),
            Err(lock::Error::Netfilter(netfilter::Error::Owned { .. }))
        ));
        let guard = killswitch::routing::Guard::from_policy(&other);
        let live = killswitch::routing::read().during("read")?;
        assert!(live.missing(&guard).is_empty());
        drop(first);
        assert!(second.hold(&policy).during("hold")?.owned);
        Ok(())
    })??;
    Ok(())
}

/// The time is printed, not judged: what is judged is that nothing was written.
pub fn holding_what_holds_is_cheap() -> Outcome {
    const TIMES: u32 = 100;
    let it = LockedLab::new()?;
    it.lock()?;
    let policy = it.policy()?;
    it.lab.client.run(|| -> Result<()> {
        let generation = || {
            let socket = Socket::open(NetlinkFamily::Netfilter).during("netlink")?;
            netfilter::live::generation(&socket).during("generation")
        };
        let mut keeper = Keeper::open().during("keeper")?;
        keeper.hold(&policy).during("hold")?;
        let (before, begin) = (generation()?, Instant::now());
        for _ in 0..TIMES {
            let outcome = keeper.hold(&policy).during("hold")?;
            assert!(outcome.owned && !outcome.changed, "{outcome:?}");
        }
        println!("hold: {:.2?}", begin.elapsed() / TIMES);
        assert_eq!(generation()?, before);
        Ok(())
    })??;
    Ok(())
}
