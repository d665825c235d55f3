//! `lock`, `unlock`, `reload`: what changes the kernel.

use std::cell::LazyCell;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde::Serialize;

use super::agent::with_agent;
use super::args::{Arguments, Lock, Reload, Unlock};
use super::{BAD_CONFIGURATION, FAILED, Failure, NOT_PERMITTED, evidence, output, ssh};
use crate::config::{self, Config};
use crate::dbus::client::{self, Daemon};
use crate::dbus::{self, SOCKET};
use crate::evidence::{Caller, Through, What, clipped, ruleset_hash};
use crate::lock::{self, Outcome};
use crate::netfilter;
use crate::policy::Policy;

#[derive(Serialize)]
struct Report<'a> {
    locked: bool,
    changed: bool,
    degraded: &'a [String],
}

pub(super) fn lock(arguments: &Arguments, options: &Lock) -> Result<u8, Failure> {
    if options.boot {
        return lock_at_boot(arguments);
    }
    apply(arguments, options.yes, ("lock", "locked"), Daemon::lock).map_err(|failure| {
        match is_locked() {
            Some(false) if is_of_the_file(&failure) => not_locked(failure),
            _ => failure,
        }
    })
}

/// Nothing was changed, since the configuration could not be used, or not even be read.
fn is_of_the_file(failure: &Failure) -> bool {
    matches!(failure.code, BAD_CONFIGURATION | NOT_PERMITTED)
}

/// Whether the kernel holds a lock, as far as this user may know.
fn is_locked() -> Option<bool> {
    lock::read().ok().map(|live| live.locked())
}

/// Of an open machine that stays so.
fn not_locked(failure: Failure) -> Failure {
    Failure {
        message: format!(
            "{}\nNOT LOCKED: everything may leave\n\
             help: mend the file; until then, `killswitch lock --boot` locks most strictly",
            failure.message
        ),
        ..failure
    }
}

pub(super) fn reload(arguments: &Arguments, options: &Reload) -> Result<u8, Failure> {
    apply(arguments, options.yes, ("reload", "reloaded"), Daemon::reload).map_err(|failure| {
        let words = match is_locked() {
            _ if !is_of_the_file(&failure) => "`killswitch status` shows what holds now",
            Some(false) => return not_locked(failure),
            Some(true) => "the lock is as it was",
            // The daemon said so.
            None => return failure,
        };
        Failure { message: format!("{}\n{words}", failure.message), ..failure }
    })
}

/// `ask`: what a caller without privileges asks of the daemon.
fn apply(
    arguments: &Arguments,
    yes: bool,
    (command, done): (&str, &str),
    ask: fn(&Daemon) -> Result<Outcome, client::Error>,
) -> Result<u8, Failure> {
    let file = std::path::absolute(&arguments.config)?;
    let outcome = match geteuid().is_root() {
        true => apply_file(&file, yes, command)?,
        false => over_the_bus(|daemon| {
            daemon.reads(&file)?;
            // Who is not root may not read the configuration.
            match ssh::session().filter(|_| !yes) {
                Some(session) if !session.survives(|packet| daemon.explain(packet))? => {
                    Ok(Err(session.explain()))
                }
                _ => ask(daemon).map(Ok),
            }
        })?
        .map_err(|cut_off| Failure::new(FAILED, cut_off))?,
    };
    report(arguments, &outcome, done);
    Ok(0)
}

fn apply_file(file: &Path, yes: bool, command: &str) -> Result<Outcome, Failure> {
    let config = config::load(file).map_err(unless_forbidden)?;
    let policy = Policy::from_config(&config);
    if !yes && let Some(session) = ssh::session_cut_off_by(&policy) {
        return Err(Failure::new(FAILED, session.explain()));
    }
    let by = LazyCell::new(|| evidence::typed(command, ""));
    // An open machine is closed first; who asked is noted then.
    if command != "lock" {
        LazyCell::force(&by);
    }
    let by_daemon = |daemon: &Daemon| {
        LazyCell::force(&by);
        daemon.reads(file)?;
        daemon.reload()
    };
    let directly = || {
        let outcome = lock::lock(&policy);
        // Also where that failed.
        let by = by.clone();
        let outcome = outcome?;
        evidence::note(locked(by, Through::Kernel, &policy, &outcome));
        Ok(outcome)
    };
    recorded(command, by_daemon_or(by_daemon, directly))
}

/// As evidence: the lock was closed by this process.
fn locked(by: Caller, through: Through, policy: &Policy, outcome: &Outcome) -> What {
    let ruleset = Some(ruleset_hash(policy));
    let degraded = outcome.degraded.iter().map(|it| clipped(it)).take(16).collect();
    What::Lock { by, through, changed: Some(outcome.changed), ruleset, degraded }
}

/// Also that it failed is evidence; the daemon keeps its own.
fn recorded<T>(command: &str, result: Result<T, Failure>) -> Result<T, Failure> {
    if let Err(failure) = &result {
        let why = failure.message.lines().next().unwrap_or_default();
        evidence::note(What::Failed { what: command.into(), why: clipped(why) });
    }
    result
}

/// Who is not root may only ask the daemon, which asks polkit.
fn over_the_bus<T>(by_daemon: impl Fn(&Daemon) -> Result<T, client::Error>) -> Result<T, Failure> {
    with_agent(|| match Daemon::reach(DAEMON_PATIENCE).and_then(|daemon| by_daemon(&daemon)) {
        Err(client::Error::NotRunning) => Err(Failure::new(
            NOT_PERMITTED,
            "not permitted: this needs root (CAP_NET_ADMIN) where the daemon is not on the system bus\n\
             help: run this as root, or: systemctl start killswitch",
        )),
        other => Ok(other?),
    })
}

/// A daemon that runs owns the tables, so it makes the change; otherwise we do.
///
/// One that hangs is killed: whoever sits at the console must always have a way. systemd then starts
/// it anew, and with the tables' socket in systemd's store nothing opens meanwhile. A service that
/// does not come up is stopped.
fn by_daemon_or(
    by_daemon: impl Fn(&Daemon) -> Result<Outcome, client::Error>,
    directly: impl Fn() -> Result<Outcome, lock::Error>,
) -> Result<Outcome, Failure> {
    let begin = Instant::now();
    let mut killed = false;
    // It leaves its socket behind. Where none ever ran, asking systemd would take longer than locking.
    let ran = Path::new(SOCKET).exists();
    loop {
        match Daemon::reach(DAEMON_PATIENCE).and_then(|daemon| by_daemon(&daemon)) {
            Ok(outcome) => return Ok(outcome),
            // Others ask for the same at this moment.
            Err(client::Error::Refused(dbus::Error::Busy(_)))
                if begin.elapsed() < BUSY_PATIENCE => {}
            Err(refused @ (client::Error::Refused(_) | client::Error::OtherFile { .. })) => {
                return Err(refused.into());
            }
            Err(client::Error::Silent) if !killed => {
                output::warning("the daemon does not answer: killing it");
                // One that cannot even be found is told of by name, as the tables' owner.
                if let Err(failure) = kill_daemon() {
                    output::warning(&failure.message);
                }
                killed = true;
            }
            // Between two daemons: the next one would undo what we did.
            Err(_) if ran && begin.elapsed() < SUCCESSOR_PATIENCE && service_runs() => {}
            Err(_) => {
                if ran {
                    stop_service();
                }
                match directly() {
                    Err(lock::Error::Netfilter(netfilter::Error::Owned { .. }))
                        if begin.elapsed() < RELEASE_PATIENCE =>
                    {
                        stop_service();
                    }
                    other => return Ok(other?),
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// For an answer: the daemon never blocks for long, but reads and applies a configuration.
const DAEMON_PATIENCE: Duration = Duration::from_secs(5);
/// For others who ask at the same time.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);
/// For a killed daemon's successor.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(10);
/// For systemd to let go of the tables' owner besides.
const RELEASE_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Of one that hangs so long that nobody can come in any more, only systemd knows the process.
fn kill_daemon() -> Result<(), Failure> {
    match client::kill() {
        Err(client::Error::Silent)
            if systemctl(&["kill", "--signal=KILL", "--kill-who=main", SERVICE]) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Whether systemd runs the daemon, or is about to.
fn service_runs() -> bool {
    let state = Command::new("systemctl")
        .args(["show", "--property=ActiveState", "--value", SERVICE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // Without systemd it says nothing.
    state.is_ok_and(|output| !matches!(output.stdout.trim_ascii(), b"" | b"inactive" | b"failed"))
}

/// A daemon that cannot be asked, or does not come up, would hold on to the tables; and systemd does
/// by their socket in its store, even if the service is stopped.
fn stop_service() {
    if service_runs() {
        output::warning("the daemon cannot be asked: stopping killswitch.service");
        systemctl(&["stop", SERVICE]);
    }
    // Where systemd keeps none, or does not run, it refuses; what holds is seen by trying again.
    let _ = clean_store();
}

/// `systemctl clean --what=fdstore`, which needs D-Bus, as most of systemctl does not: asked of
/// systemd itself.
fn clean_store() -> Result<(), Box<dyn std::error::Error>> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let request = async {
        let stream = UnixStream::connect("/run/systemd/private")?;
        let systemd = zbus::connection::Builder::unix_stream(stream).p2p().build().await?;
        let (path, manager) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        let what = (SERVICE, vec!["fdstore"]);
        systemd.call_method(None::<&str>, path, Some(manager), "CleanUnit", &what).await?;
        Ok::<_, zbus::Error>(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, request).await })??;
    Ok(())
}

fn systemctl(arguments: &[&str]) -> bool {
    Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The daemon's unit.
const SERVICE: &str = "killswitch.service";

/// Who may not lock at all is told so, rather than that the file may not be read.
fn unless_forbidden(error: config::Error) -> Failure {
    match lock::permitted().map_err(Failure::from) {
        Err(forbidden) if forbidden.code == NOT_PERMITTED => forbidden,
        _ => error.into(),
    }
}

/// At boot nobody can answer and nothing may stay open: what cannot be used leads to the strictest
/// lock, and says so.
fn lock_at_boot(arguments: &Arguments) -> Result<u8, Failure> {
    // Not at boot then, e.g. by an upgrade: the tables are the daemon's.
    if let Ok(daemon) = Daemon::reach(DAEMON_PATIENCE) {
        report(arguments, &daemon.lock()?, "the daemon runs, and locked");
        return Ok(0);
    }
    let config = match config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return strictest(&error),
    };
    if !config.lock.at_boot {
        let live = lock::read();
        output::warning(match &live {
            Ok(live) if live.locked() => "lock.at_boot is false: the lock stays on, as it was",
            Ok(_) => "lock.at_boot is false: not locked",
            Err(_) => "lock.at_boot is false: nothing is done",
        });
        if arguments.json {
            let locked = live?.locked();
            output::json(&Report { locked, changed: false, degraded: &[] });
        }
        return Ok(0);
    }
    let policy = Policy::from_config(&config);
    match lock::lock(&policy) {
        Ok(outcome) => {
            evidence::note(locked(at_boot(), Through::Boot, &policy, &outcome));
            report(arguments, &outcome, "locked");
            Ok(0)
        }
        // Without nf_tables the strictest tables cannot be had either, and the routing guard is on.
        Err(error @ lock::Error::RoutingOnly { netfilter: netfilter::Error::Missing(_), .. }) => {
            Err(error.into())
        }
        Err(error) => {
            let Ok(outcome) = lock::lock(&Policy::strictest()) else { return Err(error.into()) };
            note_strictest(&error.to_string(), &outcome);
            let Outcome { changed, degraded, .. } = outcome;
            Err(Failure::new(FAILED, format!("{error}\nthe strictest lock is on: nothing leaves"))
                .with(&Report { locked: true, changed, degraded: &degraded }))
        }
    }
}

/// Nothing waits at boot: what is noted there, the daemon folds in.
fn at_boot() -> Caller {
    Caller::here(None)
}

fn note_strictest(why: &str, outcome: &Outcome) {
    evidence::note(What::Failed { what: "lock --boot".into(), why: clipped(why) });
    evidence::note(locked(at_boot(), Through::Boot, &Policy::strictest(), outcome));
}

fn strictest(error: &config::Error) -> Result<u8, Failure> {
    let mut outcome = lock::lock(&Policy::strictest())?;
    note_strictest(&error.summary(), &outcome);
    let text = error.to_string();
    outcome.degraded.insert(0, "the configuration cannot be used; the strictest lock is on".into());
    let Outcome { changed, degraded, .. } = &outcome;
    let failure = Failure::new(
        BAD_CONFIGURATION,
        format!(
            "{text}\nthe strictest lock is on: nothing leaves this machine\n\
             help: mend the file, then `killswitch reload`"
        ),
    );
    Err(failure.with(&Report { locked: true, changed: *changed, degraded }))
}

pub(super) fn unlock(arguments: &Arguments, options: &Unlock) -> Result<u8, Failure> {
    let question = "Open the lock? Everything may then leave in clear.";
    if !options.yes && !confirmed("unlock", question)? {
        return Err(Failure::new(FAILED, "not unlocked"));
    }
    let by = evidence::typed("unlock", &options.reason);
    let open = || {
        let changed = lock::unlock()?;
        let (by, through, reason) = (by.clone(), Through::Kernel, clipped(&options.reason));
        evidence::note(What::Unlock { by, through, reason, changed: Some(changed) });
        Ok(Outcome { changed, ..Outcome::default() })
    };
    let by_daemon = |daemon: &Daemon| {
        let changed = daemon.unlock(&options.reason)?;
        Ok(Outcome { changed, ..Outcome::default() })
    };
    let outcome = match geteuid().is_root() {
        true => recorded("unlock", by_daemon_or(by_daemon, open))?,
        false => over_the_bus(by_daemon)?,
    };
    let changed = outcome.changed;
    if arguments.json {
        output::json(&Report { locked: false, changed, degraded: &[] });
    } else if changed {
        output::say("unlocked: everything may leave this machine in clear");
    } else {
        output::say("there was no lock");
    }
    Ok(0)
}

/// Asks before `command` is done.
pub(super) fn confirmed(command: &str, question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let words = format!("{command} asks at a terminal; scripts say `{command} --yes`");
        return Err(Failure::usage(words));
    }
    // Not standard output, which may be a script's JSON.
    let mut terminal = std::io::stderr();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn report(arguments: &Arguments, outcome: &Outcome, done: &str) {
    let Outcome { changed, degraded, .. } = outcome;
    if arguments.json {
        output::json(&Report { locked: true, changed: *changed, degraded });
        return;
    }
    match changed {
        true => output::say(done),
        false => output::say(&format!("{done}: nothing had to be changed")),
    }
    for reason in degraded {
        output::warning(&format!("degraded: {reason}"));
    }
}

/// The configuration's policy; or the strictest, and why it stands in.
pub(super) fn load_or_strictest(
    arguments: &Arguments,
) -> (Option<Config>, Policy, Option<config::Error>) {
    match config::load(&arguments.config) {
        Ok(config) => {
            let policy = Policy::from_config(&config);
            (Some(config), policy, None)
        }
        Err(error) => (None, Policy::strictest(), Some(error)),
    }
}

/// Why the strictest policy stands in, in one line.
pub(super) fn complaint(error: &config::Error) -> String {
    format!("the configuration cannot be used: {}", error.summary())
}
