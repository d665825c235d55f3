//! The honest test: senders that never stop, while tunnel, links, daemon and table are taken away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;

use super::probe::{LINKS, Probe};
use super::report::Report;
use super::restore::Watcher;
use super::run::{Subject, Test};
use super::shot::Sockets;
use crate::config;
use crate::dbus::client::{self, Daemon};
use crate::lock;
use crate::netfilter::batch::Batch;
use crate::netlink::{Family as NetlinkFamily, Link, Socket};
use crate::policy::Policy;
use crate::ruleset::Family;

/// Between two looks at the machine.
const EVERY: Duration = Duration::from_millis(250);
/// Before the first change, and after the last.
const CALM: Duration = Duration::from_secs(1);
/// For the daemon to get back what was taken.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it is disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Disruption {
    /// How long a link or tunnel is away.
    pub down_time: Duration,
    /// How long the test takes at least.
    pub least: Duration,
}

/// Runs it. What was taken away is back when it returns, and if it is killed `watcher` gives it back.
///
/// # Errors
/// Those of sockets and links; Interrupted: by one of `signals`.
pub fn disrupt(
    subject: Subject,
    how: Disruption,
    watcher: &mut Watcher,
    signals: SignalFd,
    tell: &mut dyn FnMut(&str),
) -> io::Result<Report> {
    let configuration = subject.configuration.clone().unwrap_or_default();
    let (mut test, probes, _guest) = Test::begin(subject, true)?;
    test.end_by(signals);
    let senders = Senders::start(probes);
    let mut stage = Stage { test, configuration, how, watcher, tell, begin: Instant::now() };
    stage.play()?;
    let probes = senders.stop()?;
    // What is on its way yet.
    stage.test.attend(CALM, EVERY)?;
    Ok(stage.test.finish(&probes, true))
}

struct Stage<'a> {
    test: Test,
    configuration: PathBuf,
    how: Disruption,
    watcher: &'a mut Watcher,
    tell: &'a mut dyn FnMut(&str),
    begin: Instant,
}

impl Stage<'_> {
    fn play(&mut self) -> io::Result<()> {
        self.phase("before", "everything is sent; nothing is disturbed yet");
        self.test.attend(CALM, EVERY)?;
        self.cut_tunnel()?;
        self.cut_links()?;
        self.kill_daemon()?;
        self.flush_tables()?;
        self.phase("after", "nothing is disturbed any more");
        let rest = self.how.least.saturating_sub(self.begin.elapsed());
        self.test.attend(rest.max(CALM), EVERY)
    }

    fn policy(&self) -> &Policy {
        self.test.in_force.policy()
    }

    fn phase(&mut self, name: &str, title: &str) {
        self.test.phase(name, title);
        (self.tell)(title);
    }

    fn skip(&mut self, what: &str) {
        skip(&mut self.test, self.tell, what);
    }

    fn cut_tunnel(&mut self) -> io::Result<()> {
        let Some(link) = self.test.here.tunnel_link(self.policy()).filter(|it| it.up).cloned()
        else {
            self.skip("tunnel-cut: not done: there is no tunnel");
            return Ok(());
        };
        if !self.policy().routing_guard || !client::runs() {
            self.skip("tunnel-cut: not done: no daemon of ours would bring the tunnel back");
            return Ok(());
        }
        self.phase("tunnel-cut", &format!("{} is set down", link.name));
        // The daemon brings it back at once; if it does not, the guard does.
        let down = match self.watcher.take_down(link.index) {
            Ok(down) => down,
            Err(error) => {
                skip(&mut self.test, self.tell, &gone("tunnel-cut", &link, error)?);
                return Ok(());
            }
        };
        let outcome = self.test.attend(self.how.down_time, EVERY);
        drop(down);
        outcome?;
        self.wait_for_tunnel()
    }

    /// Each link that a default route leads to; where none does, each that is up.
    fn cut_links(&mut self) -> io::Result<()> {
        let mut links = self.test.here.watched(self.policy());
        links.retain(|it| it.up);
        let routed = |index| self.test.here.routers.iter().any(|it| it.0 == index);
        if links.iter().any(|it| routed(it.index)) {
            links.retain(|it| routed(it.index));
        }
        if links.is_empty() {
            self.skip("link-down: not done: no link is up");
        }
        if links.len() > LINKS {
            self.skip(&format!("link-down: done with {LINKS} of {} links", links.len()));
            links.truncate(LINKS);
        }
        for link in links {
            self.phase("link-down", &format!("{} is down", link.name));
            let down = match self.watcher.take_down(link.index) {
                Ok(down) => down,
                Err(error) => {
                    skip(&mut self.test, self.tell, &gone("link-down", &link, error)?);
                    continue;
                }
            };
            let outcome = self.test.attend(self.how.down_time, EVERY);
            self.test.phase("link-up", &format!("{} is up again", link.name));
            drop(down);
            outcome?;
            self.wait_for_tunnel()?;
        }
        Ok(())
    }

    fn kill_daemon(&mut self) -> io::Result<()> {
        if !is_kept_by_systemd() {
            self.skip(
                "daemon-killed: not done: systemd does not run it, so nobody would start it again",
            );
            return Ok(());
        }
        self.phase("daemon-killed", "the daemon is killed; systemd starts it again");
        let killed = client::process().map_err(io::Error::other)?;
        client::kill().map_err(io::Error::other)?;
        // The one that was killed may listen for a moment yet.
        self.until(|_| client::process().is_ok_and(|it| it != killed))?;
        self.wait_for_tunnel()
    }

    /// As `nft flush ruleset` would, but of our own tables alone. Nobody but their owner may.
    fn flush_tables(&mut self) -> io::Result<()> {
        let owned = lock::read()
            .is_ok_and(|live| live.inet.as_ref().is_some_and(|table| table.owner.is_some()));
        if !owned && !client::runs() {
            self.skip(
                "table-flushed: not done: without a daemon nobody owns the tables, and it would \
                 open the lock (SECURITY.md, 21)",
            );
            return Ok(());
        }
        self.phase("table-flushed", "another program deletes the lock's tables");
        for family in [Family::Netdev, Family::Inet] {
            let socket = Socket::open(NetlinkFamily::Netfilter)?;
            let mut batch = Batch::new(family);
            batch.delete_table();
            // Refused, as it should be, where somebody owns it.
            let _ = batch.commit(&socket, None);
        }
        relock(&self.configuration)?;
        self.test.attend(CALM, EVERY)
    }

    /// The daemon gets the tunnel back by itself, if it had one and can.
    fn wait_for_tunnel(&mut self) -> io::Result<()> {
        if self.policy().routing_guard && client::runs() {
            let connected = |_: &Test| {
                Daemon::report_within(EVERY)
                    .is_ok_and(|it| it.tunnel == "connected" || it.tunnel == "off")
            };
            self.until(connected)?;
        }
        self.test.attend(CALM, EVERY)
    }

    /// Watches until it holds, for as long as is reasonable: the report shows what was.
    fn until(&mut self, holds: impl Fn(&Test) -> bool) -> io::Result<()> {
        let begin = Instant::now();
        while !holds(&self.test) && begin.elapsed() < PATIENCE {
            self.test.attend(EVERY, EVERY)?;
        }
        Ok(())
    }
}

fn skip(test: &mut Test, tell: &mut dyn FnMut(&str), what: &str) {
    tell(what);
    test.limits.push(what.to_owned());
}

/// Why a link cannot be set down that is there no more, which may be at any time.
///
/// # Errors
/// It is another reason.
fn gone(phase: &str, link: &Link, error: io::Error) -> io::Result<String> {
    let why = format!("{phase}: not done with {}: {error}", link.name);
    match error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) {
        true => Ok(why),
        false => Err(io::Error::new(error.kind(), why)),
    }
}

/// Locks again, if anything opened: the daemon does, or without one we, by what is configured now.
///
/// # Errors
/// [`lock::Error`].
pub fn relock(configuration: &Path) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let policy = config::load(configuration)
        .map_or_else(|_| Policy::strictest(), |config| Policy::from_config(&config));
    let whole = |live: lock::Live| live.locked() && live.egress.is_some() == policy.egress_guard;
    if lock::read().is_ok_and(whole) {
        return Ok(());
    }
    match Daemon::reach(PATIENCE).and_then(|daemon| daemon.lock()) {
        Ok(_) => Ok(()),
        Err(_) => lock::lock(&policy).map(drop).map_err(io::Error::other),
    }
}

/// Of one that is not, nobody would start another.
fn is_kept_by_systemd() -> bool {
    client::process().is_ok_and(|id| {
        let groups = std::fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
        groups.contains("killswitch.service")
    })
}

/// Sends without a pause between two rounds that anybody could slip through; ends when dropped.
struct Senders {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Probe>>>,
}

impl Senders {
    fn start(mut probes: Vec<Probe>) -> Self {
        /// Between two probes: a round of all takes some tenths of a second.
        const PAUSE: Duration = Duration::from_millis(5);
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let mut sockets = Sockets::default();
                for probe in &mut probes {
                    probe.fire(&mut sockets);
                    std::thread::sleep(PAUSE);
                }
                if probes.is_empty() {
                    std::thread::sleep(PAUSE);
                }
            }
            probes
        });
        Senders { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> io::Result<Vec<Probe>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or(io::ErrorKind::NotFound)?;
        thread.join().map_err(|_| io::Error::other("a sender panicked"))
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
