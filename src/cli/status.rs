//! `status`: the kernel's view.

use std::collections::VecDeque;
use std::io::{ErrorKind, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;

use super::args::{self, Arguments};
use super::change::{complaint, load_or_strictest};
use super::output::{Style, bytes, harmless, json, say, stream, styled};
use super::{Failure, watch};
use crate::daemon::calls::{Event, Excepted, Report};
use crate::dbus::client;
use crate::lock::{REMAINS, State, Status};
use crate::policy::Policy;
use crate::status;

/// Exit status where nothing can be told.
pub(super) const CANNOT_TELL: u8 = 30;

pub(super) fn status(arguments: &Arguments, options: &args::Status) -> Result<u8, Failure> {
    if options.watch {
        return watch(arguments);
    }
    let status = read(arguments)?;
    if arguments.json {
        json(&status);
    } else {
        lines(&status).iter().for_each(|line| say(line));
    }
    Ok(status.exit_code())
}

/// A hung daemon must not keep anybody from an answer.
pub(super) const PATIENCE: Duration = Duration::from_millis(25);

pub(super) fn read(arguments: &Arguments) -> Result<Status, Failure> {
    Ok(read_within(arguments, PATIENCE)?.0)
}

/// As [`read`], with this patience for the daemon, and what may leave now, exceptions included.
pub(super) fn read_within(
    arguments: &Arguments,
    patience: Duration,
) -> Result<(Status, Policy), Failure> {
    let (config, policy, error) = load_or_strictest(arguments);
    let complaint = error.as_ref().map(complaint);
    let mut told = ask_daemon(patience);
    loop {
        let effective = status::with_exceptions(&policy, config.as_ref(), exceptions(&told));
        let mut status = match status::read(config.as_ref(), &effective, complaint.clone()) {
            Ok(status) => status,
            Err(error) => {
                return read_by_daemon()
                    .map(|status| (status, effective))
                    .ok_or_else(|| Failure { code: CANNOT_TELL, ..Failure::from(error) });
            }
        };
        // An exception may have begun or ended since the daemon was asked.
        if status.locked && !status.intact && matches!(told, Ok(Some(_))) {
            let since = ask_daemon(patience);
            if exceptions(&since) != exceptions(&told) {
                told = since;
                continue;
            }
        }
        add_daemon(&mut status, told);
        return Ok((status, effective));
    }
}

/// Whoever may not read the kernel may ask the daemon over the system bus.
fn read_by_daemon() -> Option<Status> {
    const PATIENCE: Duration = Duration::from_secs(5);
    if geteuid().is_root() {
        return None;
    }
    client::Daemon::reach(PATIENCE).and_then(|daemon| daemon.status()).ok()
}

/// What the daemon is at, if there is one.
pub(super) fn ask_daemon(patience: Duration) -> Result<Option<Report>, client::Error> {
    match client::Daemon::report_within(patience) {
        Ok(report) => Ok(Some(report)),
        Err(client::Error::NotRunning | client::Error::NoBus(_)) => Ok(None),
        // The machine's own daemon, seen from a user namespace, is not this one's.
        Err(client::Error::Io(error)) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

fn exceptions(told: &Result<Option<Report>, client::Error>) -> &[Excepted] {
    match told {
        Ok(Some(report)) => &report.exceptions,
        _ => &[],
    }
}

fn add_daemon(status: &mut Status, told: Result<Option<Report>, client::Error>) {
    match told {
        Ok(Some(report)) => status::add_report(status, &report),
        Ok(None) => {}
        Err(_) => {
            status.daemon = true;
            status.degraded.push("the daemon does not answer".into());
        }
    }
}

/// Shows it anew every second: counters make no events. On a terminal, until interrupted; otherwise
/// until nobody reads. A reading that fails is shown like any other.
fn watch(arguments: &Arguments) -> Result<u8, Failure> {
    const PAUSE: Duration = Duration::from_secs(1);
    let mut reading = Ok(read(arguments)?);
    if !arguments.json && std::io::stdout().is_terminal() {
        let mut told = None;
        // Begun within the view: the thread shall not take the view's signals.
        let recent = || told.get_or_insert_with(Told::listen).lines();
        return watch::view(reading, PAUSE, || read(arguments), recent);
    }
    loop {
        let shown = match (arguments.json, &reading) {
            (true, Ok(status)) => serde_json::to_string(status).map_err(std::io::Error::from)?,
            (true, Err(failure)) => failure.document().to_string(),
            (false, Ok(status)) => lines(status).join("\n") + "\n",
            (false, Err(failure)) => format!("cannot tell: {}\n", harmless(&failure.message)),
        };
        if stream(&shown).is_err() {
            return Ok(reading.map_or(CANNOT_TELL, |status| status.exit_code()));
        }
        std::thread::sleep(PAUSE);
        reading = read(arguments);
    }
}

/// What the daemon told of late: what was just blocked, and who sent it.
struct Told(Arc<Mutex<VecDeque<String>>>);

impl Told {
    /// Listens from now on, and again whenever there is a new daemon.
    fn listen() -> Self {
        const PATIENCE: Duration = Duration::from_secs(5);
        let told = Arc::new(Mutex::new(VecDeque::new()));
        let to = told.clone();
        std::thread::spawn(move || {
            loop {
                let _ = client::Daemon::reach(PATIENCE).and_then(|daemon| {
                    daemon.events(|event| {
                        remember(&to, &event);
                        Ok(())
                    })
                });
                std::thread::sleep(PATIENCE);
            }
        });
        Told(told)
    }

    fn lines(&self) -> Vec<String> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().cloned().collect()
    }
}

fn remember(told: &Mutex<VecDeque<String>>, event: &Event) {
    /// More than any terminal shows.
    const MOST: usize = 200;
    // The state is shown already.
    if matches!(event, Event::State(_)) {
        return;
    }
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    if told.len() == MOST {
        told.pop_front();
    }
    told.push_back(super::tunnel::in_words(event, |_, word| word.to_owned()));
}

/// A state's colour, its name and what it means.
pub(super) fn state(status: &Status) -> (Style, &'static str, &'static str) {
    match status.state {
        State::Connected => (Style::Green, "connected", "locked, and the tunnel's link is up"),
        State::Connecting => (Style::Yellow, "connecting", "locked; nothing leaves in clear"),
        State::Blocked => (Style::Yellow, "blocked", "locked, no tunnel; nothing leaves"),
        State::Open => (Style::Red, "open", open_meaning(status)),
        State::Damaged => (Style::Red, "damaged", "not what the configuration asks for"),
    }
}

/// When the last handshake was.
pub(super) fn handshake(age_s: Option<u64>) -> String {
    match age_s {
        Some(age) => format!("last handshake {age} s ago"),
        None => "no handshake yet".to_owned(),
    }
}

fn lines(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |line: String| lines.push(line);
    let (style, word, meaning) = state(status);
    say(format!("state     {}: {meaning}", styled(style, word)));
    if let Some(tunnel) = &status.tunnel {
        let state = if tunnel.up { "up" } else { "down or absent" };
        say(format!(
            "tunnel    {} {state}, {} received, {} sent",
            tunnel.interface,
            bytes(tunnel.rx_bytes),
            bytes(tunnel.tx_bytes)
        ));
        if let (Some(server), Some(endpoint)) = (&tunnel.server, &tunnel.endpoint) {
            let handshake = handshake(tunnel.last_handshake_age_s);
            say(format!("server    {server} ({endpoint}), {handshake}"));
        }
    }
    let layers = &status.layers;
    let mark = |holds: bool| match holds {
        true => styled(Style::Green, "intact"),
        false => styled(Style::Red, "not intact"),
    };
    say(format!("table     {}{}", mark(layers.table), if layers.owned { ", owned" } else { "" }));
    let links = if layers.egress.is_empty() {
        "no links".to_owned()
    } else {
        harmless(&layers.egress.join(", "))
    };
    say(format!("egress    {links}"));
    let routes = match status.routing_guard {
        true => mark(layers.routes),
        false => "none with an external tunnel".to_owned(),
    };
    say(format!("routes    {routes}"));
    say(format!("daemon    {}", if status.daemon { "running" } else { "not running" }));
    for exception in &status.exceptions {
        say(format!("exception {}", styled(Style::Yellow, &super::exception::line(exception))));
    }
    for (chain, reasons) in &status.dropped {
        for (reason, count) in reasons.iter().filter(|(_, count)| count.packets > 0) {
            let (chain, reason) = (harmless(chain), harmless(reason));
            let (packets, size) = (count.packets, bytes(count.bytes));
            say(format!("dropped   {chain}: {reason}: {packets} packets, {size}"));
        }
    }
    for reason in &status.degraded {
        say(format!("{}  {}", styled(Style::Yellow, "degraded"), harmless(reason)));
    }
    lines
}

/// Without its table the lock is open, though other layers may still stop most.
fn open_meaning(status: &Status) -> &'static str {
    match status.degraded.iter().any(|it| it == REMAINS) {
        false => "not locked; everything may leave in clear",
        true => "the table is gone; only other layers still hold: run `killswitch lock`",
    }
}
