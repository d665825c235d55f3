//! `status --watch` on a terminal: a live view.
//!
//! [`draw`] makes lines of two readings and a size; the rest puts them on the terminal, and waits for
//! a key, a signal or the next second.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::Failure;
use super::output::{self, Style, bytes, harmless};
use super::status::{CANNOT_TELL, handshake, state};
use crate::lock::Status;
use crate::netfilter::Counted;

/// What the kernel said at one moment.
pub(super) struct Reading {
    /// Since the view began.
    at: Duration,
    status: Result<Status, Failure>,
}

/// By chain and reason.
type Drops = BTreeMap<(String, String), Counted>;

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    columns: usize,
    rows: usize,
}

/// A line of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    text: String,
    style: Option<Style>,
}

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Line { text: text.into(), style: None }
    }

    fn styled(style: Style, text: impl Into<String>) -> Self {
        Line { text: text.into(), style: Some(style) }
    }
}

/// What two readings show, with what was dropped since the view began and what others told
/// (`recent`, oldest first), in the order of its importance and cut to the terminal's size.
fn draw(
    previous: Option<&Reading>,
    reading: &Reading,
    dropped: &Drops,
    recent: &[String],
    size: Size,
) -> Vec<Line> {
    let mut lines = match &reading.status {
        Ok(status) => {
            let earlier = previous.and_then(|it| Some((it.status.as_ref().ok()?, it.at)));
            let earlier =
                earlier.map(|(status, at)| (status, reading.at.saturating_sub(at).as_secs_f64()));
            let mut lines = tunnel(earlier, status);
            lines.extend(drops(earlier, status, dropped));
            lines
        }
        Err(failure) => cannot_tell(failure),
    };
    if !recent.is_empty() {
        lines.push(Line::plain(""));
        lines.push(Line::plain("just now"));
        // The newest first: the end may not fit.
        lines.extend(recent.iter().rev().map(|line| Line::plain(format!("  {}", harmless(line)))));
    }
    fit(lines, size)
}

fn cannot_tell(failure: &Failure) -> Vec<Line> {
    let text = format!("cannot tell: {}", harmless(&failure.message));
    text.lines().map(|line| Line::styled(Style::Red, line)).collect()
}

/// The state and the tunnel; `earlier`: a reading and how many seconds ago it was.
fn tunnel(earlier: Option<(&Status, f64)>, status: &Status) -> Vec<Line> {
    let (style, word, meaning) = state(status);
    let mut lines = vec![Line::styled(style, format!("{word}: {meaning}"))];
    for exception in &status.exceptions {
        let words = format!("exception {}", super::exception::line(exception));
        lines.push(Line::styled(Style::Yellow, words));
    }
    for reason in &status.degraded {
        lines.push(Line::styled(Style::Yellow, format!("degraded: {}", harmless(reason))));
    }
    lines.push(Line::plain(""));
    if let Some(tunnel) = &status.tunnel {
        let link = if tunnel.up { "up" } else { "down or absent" };
        lines.push(Line::plain(format!("tunnel    {} {link}", tunnel.interface)));
        if let (Some(server), Some(endpoint)) = (&tunnel.server, &tunnel.endpoint) {
            let handshake = handshake(tunnel.last_handshake_age_s);
            lines.push(Line::plain(format!("server    {server} ({endpoint})")));
            lines.push(Line::plain(format!("          {handshake}")));
        }
        let before = |counter: fn(&crate::lock::Tunnel) -> u64| {
            earlier.and_then(|(status, seconds)| Some((counter(status.tunnel.as_ref()?), seconds)))
        };
        let received = rate(before(|it| it.rx_bytes), tunnel.rx_bytes);
        let sent = rate(before(|it| it.tx_bytes), tunnel.tx_bytes);
        let row = |name: &str, rate: f64, sum: u64| {
            Line::plain(format!("{name:9} {:>11}/s {:>11} in all", bytes(rate as u64), bytes(sum)))
        };
        lines.push(row("received", received, tunnel.rx_bytes));
        lines.push(row("sent", sent, tunnel.tx_bytes));
    }
    let daemon = if status.daemon { "running" } else { "not running" };
    lines.push(Line::plain(format!("daemon    {daemon}")));
    lines
}

/// What was dropped since the view began, the most first, with the rate between the two readings.
fn drops(earlier: Option<(&Status, f64)>, status: &Status, dropped: &Drops) -> Vec<Line> {
    let packets = |status: &Status, (chain, reason): &(String, String)| {
        status.dropped.get(chain).and_then(|it| it.get(reason)).map_or(0, |it| it.packets)
    };
    let mut rows: Vec<_> = dropped.iter().filter(|(_, count)| count.packets > 0).collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(count.packets));
    let mut lines = vec![Line::plain("")];
    if rows.is_empty() {
        lines.push(Line::plain("nothing was dropped since this view began"));
        return lines;
    }
    lines.push(Line::plain("dropped since this view began:  packets, packets/s, bytes"));
    for (place, sum) in rows {
        let before = earlier.map(|(earlier, seconds)| (packets(earlier, place), seconds));
        let rate = rate(before, packets(status, place));
        let (chain, reason) = (harmless(&place.0), harmless(&place.1));
        let (sum, size) = (sum.packets, bytes(sum.bytes));
        lines.push(Line::plain(format!("{sum:>9} {rate:>7.0}/s {size:>11}  {chain}: {reason}")));
    }
    lines
}

/// Per second, of a counter and what it was so many seconds before.
fn rate(before: Option<(u64, f64)>, now: u64) -> f64 {
    match before {
        Some((before, seconds)) if seconds > 0.0 => since(before, now) as f64 / seconds,
        _ => 0.0,
    }
}

/// What came to a counter; one that is less than before began anew.
fn since(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// Cut to the terminal; that something is missing is said. A single row is the state's.
fn fit(mut lines: Vec<Line>, size: Size) -> Vec<Line> {
    if lines.len() + 2 <= size.rows {
        lines.extend([Line::plain(""), Line::plain("q quits")]);
    }
    if lines.len() > size.rows {
        let shown = size.rows.saturating_sub(1).max(1);
        let missing = lines.len() - shown;
        lines.truncate(shown);
        if size.rows > 1 {
            lines.push(Line::plain(format!("({missing} more lines)")));
        }
    }
    for line in &mut lines {
        line.text = line.text.chars().take(size.columns).collect();
    }
    lines
}

/// Adds what came between two readings.
fn add(dropped: &mut Drops, before: Option<&Status>, now: &Status) {
    for (chain, reasons) in &now.dropped {
        for (reason, count) in reasons {
            let earlier = before
                .and_then(|before| before.dropped.get(chain)?.get(reason).copied())
                .unwrap_or_default();
            let sum = dropped.entry((chain.clone(), reason.clone())).or_default();
            sum.packets += since(earlier.packets, count.packets);
            sum.bytes += since(earlier.bytes, count.bytes);
        }
    }
}

/// Shows readings until `q` or a signal. `recent`: what was told of late, one to a line, oldest
/// first. Ends by the signal, if by one; otherwise with the exit status of the last reading.
pub(super) fn view(
    first: Result<Status, Failure>,
    pause: Duration,
    mut read: impl FnMut() -> Result<Status, Failure>,
    mut recent: impl FnMut() -> Vec<String>,
) -> Result<u8, Failure> {
    let begin = Instant::now();
    let mut screen = Screen::open()?;
    let mut dropped = Drops::new();
    // The last that could be read: only two of these have something between them.
    let mut known = first.as_ref().ok().cloned();
    let mut previous: Option<Reading> = None;
    let mut reading = Reading { at: Duration::ZERO, status: first };
    loop {
        let size = screen.size();
        screen.show(&draw(previous.as_ref(), &reading, &dropped, &recent(), size), size)?;
        match screen.wait(reading.at + pause, begin)? {
            Happened::Quit => break,
            Happened::Ended(signal) => {
                drop(screen);
                // Only comes back if the signal is ignored.
                raise(signal).map_err(std::io::Error::from)?;
                break;
            }
            Happened::Stopped => screen.stop()?,
            Happened::Resized => {}
            Happened::Nothing => {
                let status = read();
                if let Ok(status) = &status {
                    add(&mut dropped, known.as_ref().or(Some(status)), status);
                    known = Some(status.clone());
                }
                let at = begin.elapsed();
                previous = Some(std::mem::replace(&mut reading, Reading { at, status }));
            }
        }
    }
    Ok(reading.status.map_or(CANNOT_TELL, |status| status.exit_code()))
}

/// What ends a wait.
enum Happened {
    Nothing,
    Quit,
    Resized,
    Stopped,
    Ended(Signal),
}

const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The terminal in the view's hands; given back as it was when dropped.
struct Screen {
    signals: SignalFd,
    mask: SigSet,
    /// How standard input was, if it is a terminal.
    before: Option<Termios>,
}

impl Screen {
    /// xterm's alternate screen; no cursor; lines are cut at the edge.
    const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
    const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

    fn open() -> std::io::Result<Self> {
        let mut mask = SigSet::empty();
        ENDING.into_iter().for_each(|signal| mask.add(signal));
        mask.add(Signal::SIGWINCH);
        mask.add(Signal::SIGTSTP);
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)?;
        let mut screen = Screen { signals, mask, before: None };
        screen.take()?;
        Ok(screen)
    }

    /// Keys come one by one and are not shown; Ctrl-C stays a signal.
    fn take(&mut self) -> std::io::Result<()> {
        let input = std::io::stdin();
        if let Ok(before) = tcgetattr(&input) {
            let mut raw = before.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            tcsetattr(&input, OptionalActions::Now, &raw)?;
            self.before = Some(before);
        }
        write(Self::OPEN)
    }

    fn give_back(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = write(Self::CLOSE);
        if let Some(before) = self.before.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
        }
    }

    /// As Ctrl-Z does, with the terminal as it was meanwhile.
    fn stop(&mut self) -> std::io::Result<()> {
        self.give_back();
        raise(Signal::SIGSTOP)?;
        self.take()
    }

    fn size(&self) -> Size {
        match tcgetwinsize(std::io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            // One that does not know its size; VT100's.
            _ => Size { columns: 80, rows: 24 },
        }
    }

    fn show(&self, lines: &[Line], size: Size) -> std::io::Result<()> {
        let painted: Vec<String> = lines
            .iter()
            .map(|line| match line.style {
                Some(style) => output::styled(style, &line.text),
                None => line.text.clone(),
            })
            .collect();
        // Home; each line after what was there is cleared; then what is below (ECMA-48). Clearing
        // after a line would take the last column of one that is as wide as the terminal.
        let below = if lines.len() < size.rows { "\n\x1b[J" } else { "" };
        write(&format!("\x1b[H\x1b[K{}{below}", painted.join("\n\x1b[K")))
    }

    /// Until this time after `begin`, or until something happens.
    fn wait(&mut self, until: Duration, begin: Instant) -> std::io::Result<Happened> {
        let input = std::io::stdin();
        loop {
            let left = until.saturating_sub(begin.elapsed());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut waiting = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if self.before.is_some() {
                waiting.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut waiting, timeout) {
                Ok(0) if begin.elapsed() >= until => return Ok(Happened::Nothing),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let typed = waiting.get(1).is_some_and(|it| it.any().unwrap_or(false));
            drop(waiting);
            if let Some(happened) = self.signalled()? {
                return Ok(happened);
            }
            if typed && quits()? {
                return Ok(Happened::Quit);
            }
        }
    }

    fn signalled(&mut self) -> std::io::Result<Option<Happened>> {
        let Some(information) = self.signals.read_signal()? else { return Ok(None) };
        let signal = Signal::try_from(information.ssi_signo as i32)?;
        Ok(Some(match signal {
            Signal::SIGWINCH => Happened::Resized,
            Signal::SIGTSTP => Happened::Stopped,
            ending => Happened::Ended(ending),
        }))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.give_back();
        let _ = self.mask.thread_unblock();
    }
}

/// Whether what was typed has a `q` in it, or is at its end.
fn quits() -> std::io::Result<bool> {
    let mut typed = [0; 64];
    let count = nix::unistd::read(std::io::stdin(), &mut typed)?;
    Ok(count == 0 || typed[..count].iter().any(|key| matches!(key, b'q' | b'Q')))
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Layers, State, Tunnel};

    const WIDE: Size = Size { columns: 200, rows: 60 };

    fn status(received: u64, packets: u64) -> Status {
        let reasons = [("blocked: output".to_owned(), Counted { packets, bytes: packets * 100 })];
        Status {
            state: State::Connected,
            locked: true,
            intact: true,
            degraded: vec!["a reason".into()],
            tunnel: Some(Tunnel {
                interface: "wg0".into(),
                up: true,
                server: Some("se-sto-1".into()),
                endpoint: Some("198.51.100.7:51820".into()),
                last_handshake_age_s: Some(12),
                rx_bytes: received,
                tx_bytes: 0,
                routed: true,
            }),
            layers: Layers { table: true, egress: Vec::new(), routes: true, owned: true },
            dropped: [("output".to_owned(), reasons.into())].into(),
            daemon: true,
            exceptions: Vec::new(),
            routing_guard: true,
        }
    }

    fn reading(at: u64, status: Status) -> Reading {
        Reading { at: Duration::from_secs(at), status: Ok(status) }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    /// What is drawn of a second reading, two seconds after the first.
    fn after(first: Status, second: Status, recent: &[String], size: Size) -> Vec<Line> {
        let mut dropped = Drops::new();
        add(&mut dropped, Some(&first), &second);
        draw(Some(&reading(1, first)), &reading(3, second), &dropped, recent, size)
    }

    #[test]
    fn rates_are_between_two_readings() {
        let lines = after(status(1000, 5), status(5096, 25), &[], WIDE);
        assert_eq!(
            texts(&lines),
            [
                "connected: locked, and the tunnel's link is up",
                "degraded: a reason",
                "",
                "tunnel    wg0 up",
                "server    se-sto-1 (198.51.100.7:51820)",
                "          last handshake 12 s ago",
                "received      2.0 KiB/s     5.0 KiB in all",
                "sent              0 B/s         0 B in all",
                "daemon    running",
                "",
                "dropped since this view began:  packets, packets/s, bytes",
                "       20      10/s     2.0 KiB  output: blocked: output",
                "",
                "q quits",
            ]
        );
        assert_eq!(lines[0].style, Some(Style::Green));
    }

    #[test]
    fn counters_that_begin_anew_are_no_flood() {
        let lines = after(status(1 << 40, 1000), status(2048, 4), &[], WIDE);
        let texts = texts(&lines);
        assert!(texts.iter().any(|line| line.starts_with("received      1.0 KiB/s")), "{texts:?}");
        assert!(texts.contains(&"        4       2/s       400 B  output: blocked: output"));
    }

    #[test]
    fn a_first_reading_has_no_rates_and_no_drops() {
        let lines = draw(None, &reading(0, status(1000, 5)), &Drops::new(), &[], WIDE);
        let texts = texts(&lines);
        assert!(texts.contains(&"received          0 B/s      1000 B in all"), "{texts:?}");
        assert!(texts.contains(&"nothing was dropped since this view began"));
    }

    #[test]
    fn what_was_told_of_is_harmless_and_the_newest_is_first() {
        let recent = ["old".to_owned(), "new \u{1b}[2J".to_owned()];
        let lines = after(status(0, 0), status(0, 0), &recent, WIDE);
        let texts = texts(&lines);
        let place = texts.iter().position(|line| *line == "just now").unwrap();
        assert_eq!(texts[place + 1..][..2], ["  new \\u{1b}[2J", "  old"]);
    }

    #[test]
    fn it_fits_every_terminal() {
        let recent: Vec<String> = (0..50).map(|number| format!("told {number}")).collect();
        for rows in 1..70 {
            for columns in [1, 2, 20, 80, 300] {
                let size = Size { columns, rows };
                let lines = after(status(0, 5), status(0, 9), &recent, size);
                assert!((1..=rows).contains(&lines.len()), "{size:?}: {}", lines.len());
                let longest = lines.iter().map(|line| line.text.chars().count()).max();
                assert!(longest <= Some(columns), "{size:?}: {longest:?}");
                let state: String = "connected: locked".chars().take(columns).collect();
                assert!(lines[0].text.starts_with(&state), "{size:?}: {lines:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let failed =
            Reading { at: Duration::ZERO, status: Err(Failure::new(30, "busy\nhelp: wait")) };
        let lines = draw(None, &failed, &Drops::new(), &[], WIDE);
        assert_eq!(texts(&lines)[..2], ["cannot tell: busy", "help: wait"]);
    }
}
