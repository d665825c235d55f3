//! `leaktest`: tries every way out of this machine, and says what came out.

use std::io::{ErrorKind, IsTerminal};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::args::{Arguments, Leaktest};
use super::change::confirmed;
use super::new_file::NewFile;
use super::output::{Style, harmless, json, say, styled};
use super::{FAILED, Failure, NOT_PERMITTED, inspect, ssh, status};
use crate::config;
use crate::leaktest::disrupt::{self, Disruption};
use crate::leaktest::html;
use crate::leaktest::report::{Machine, Probe, Report, Verdict};
use crate::leaktest::restore::{self, Watcher};
use crate::leaktest::run::{self, Subject};
use crate::leaktest::self_check::{self, Checked};
use crate::lock::{self, State};
use crate::ruleset;

pub(super) fn leaktest(arguments: &Arguments, options: &Leaktest) -> Result<u8, Failure> {
    if options.self_check {
        return self_check(arguments);
    }
    lock::permitted()?;
    // Before the test, so that nobody waits for a report that cannot be written. Root's alone: it has
    // addresses in it.
    let page = options.html.as_deref().map(|place| NewFile::open(place, 0o600)).transpose()?;
    let (subject, open) = subject(arguments)?;
    let mut tell = progress();
    let report = match open {
        true => run::open(subject),
        false if options.disrupt => disrupted(arguments, options, subject, &mut tell)?,
        false => run::passive(subject, least(options), &mut tell)
            .map_err(|error| ended(&error, "nothing was disturbed"))?,
    };
    let status = exit_status(report.verdict);
    // What the test found is not lost with the page.
    let written = page
        .map_or(Ok(()), |page| page.put(html::page(&report).as_bytes()))
        .map_err(|error| Failure::new(FAILED.max(status), error.to_string()).with(&report));
    match arguments.json {
        true if written.is_ok() => json(&report),
        true => {}
        false => show(&report).iter().for_each(|line| say(line)),
    }
    written.map(|()| status)
}

/// A test that has no report.
fn ended(error: &std::io::Error, machine: &str) -> Failure {
    let failure = |code, why: &str| Failure::new(code, format!("{why}: no report; {machine}"));
    let why = format!("the leak test could not go on: {error}");
    match error.kind() {
        ErrorKind::Interrupted => failure(FAILED, "interrupted"),
        ErrorKind::PermissionDenied => failure(NOT_PERMITTED, &why).helped("run this as root"),
        _ => failure(FAILED, &why),
    }
}

fn least(options: &Leaktest) -> Duration {
    Duration::from_secs(options.duration.unwrap_or_default().into())
}

fn disrupted(
    arguments: &Arguments,
    options: &Leaktest,
    subject: Subject,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, Failure> {
    if !options.yes {
        if let Some(session) = ssh::session_cut_off_by(&subject.policy) {
            return Err(Failure::new(FAILED, session.explain()));
        }
        let seconds = options.down_time.as_secs();
        let question = format!(
            "The tunnel and each link to the network will be away for {seconds} s, then the daemon \
             is killed and the tables are attacked; the lock stays, and all is given back. Go on?"
        );
        if !confirmed("leaktest --disrupt", &question)? {
            return Err(Failure::new(FAILED, "nothing was disturbed"));
        }
    }
    let signals = signals()?;
    let mut watcher = Watcher::start(&std::path::absolute(&arguments.config)?)?;
    let how = Disruption { down_time: options.down_time, least: least(options) };
    let outcome = disrupt::disrupt(subject, how, &mut watcher, signals, tell);
    // The second process tries it, too, if it is not dismissed.
    disrupt::relock(&arguments.config).map_err(|error| {
        let why = format!("after the test the lock could not be read, or closed again: {error}");
        Failure::new(FAILED, why).helped("killswitch lock")
    })?;
    watcher.dismiss();
    outcome.map_err(|error| ended(&error, "what was disturbed is given back"))
}

/// What would end us: it must be read, so that everything is given back first.
fn signals() -> Result<SignalFd, Failure> {
    let mut mask = SigSet::empty();
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    ends.into_iter().for_each(|it| mask.add(it));
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let blocked = mask.thread_block().and_then(|()| SignalFd::with_flags(&mask, flags));
    Ok(blocked.map_err(std::io::Error::from)?)
}

/// What the second process of `--disrupt` does.
pub(super) fn restore(arguments: &Arguments) -> Result<u8, Failure> {
    if restore::wait_and_restore(std::io::stdin().lock())? {
        disrupt::relock(&arguments.config)?;
    }
    Ok(0)
}

/// Works without root where user namespaces are allowed.
fn self_check(arguments: &Arguments) -> Result<u8, Failure> {
    let checked = self_check::run().map_err(|error| {
        Failure::new(FAILED, format!("no private network: {error}\nhelp: run this as root"))
    })?;
    let good = |it: &Checked| it.finds && it.quiet && it.failed.is_none();
    let works = checked.iter().all(good);
    if arguments.json {
        json(&serde_json::json!({ "works": works, "probes": checked }));
        return Ok(if works { 0 } else { FAILED });
    }
    say(&match works {
        true => {
            styled(Style::Green, "the test works: every probe finds a hole, and none where is none")
        }
        false => styled(Style::Red, "the test does not work here"),
    });
    for it in &checked {
        let (color, words) = match (it.finds, it.quiet) {
            (true, true) => (Style::Green, "finds the hole"),
            (false, _) => (Style::Red, "does not find the hole"),
            (_, false) => (Style::Red, "finds one where is none"),
        };
        let why = it.failed.as_ref().map(|it| format!(": {}", harmless(it))).unwrap_or_default();
        say(&format!("{:20}{}{why}", it.name, styled(color, words)));
    }
    Ok(if works { 0 } else { FAILED })
}

fn exit_status(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Held | Verdict::Allowed => 0,
        Verdict::Leaked => 20,
        Verdict::CannotTell => 30,
    }
}

/// Lines on standard error, where somebody looks.
fn progress() -> impl FnMut(&str) {
    let looks = std::io::stderr().is_terminal();
    move |words: &str| {
        if looks {
            eprintln!("{}", harmless(words));
        }
    }
}

/// What is tested; and whether it is open.
fn subject(arguments: &Arguments) -> Result<(Subject, bool), Failure> {
    let (status, policy) = status::read_within(arguments, status::PATIENCE)?;
    let live = lock::read()?;
    let files = match config::load(&arguments.config) {
        Ok(config) => config.files,
        // What was allowed when the lock was closed is not known: everything would be a leak.
        Err(error) if status.locked && status.state == State::Damaged => {
            let help = "the test judges by the configuration: mend it, see `killswitch check`";
            return Err(Failure::from(error).helped(help));
        }
        Err(_) => vec![arguments.config.clone()],
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let state = serde_json::to_value(status.state).unwrap_or_default();
    let machine = Machine {
        system: distribution(),
        kernel: release.trim().to_owned(),
        architecture: std::env::consts::ARCH.into(),
        killswitch: env!("CARGO_PKG_VERSION").into(),
        ruleset_sha256: ruleset::sha256(&inspect::compiled(&policy, Some(&live))),
        state: state.as_str().unwrap_or_default().to_owned(),
        degraded: status.degraded.clone(),
        configuration: config::redacted(&files),
    };
    let words = std::env::args().map(|word| quoted(&word));
    let repeat = words.collect::<Vec<_>>().join(" ");
    let damaged = status.state == State::Damaged;
    let configuration = Some(arguments.config.clone());
    Ok((Subject { policy, configuration, machine, repeat, damaged }, !status.locked))
}

/// PRETTY_NAME of os-release(5).
fn distribution() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |it| it.trim_matches('"').to_owned())
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_./=:,@+".contains(it);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The verdict first.
fn show(report: &Report) -> Vec<String> {
    let mut lines = vec![styled(style(report.verdict), &harmless(&report.summary))];
    let degraded = report.machine.degraded.iter();
    lines.extend(degraded.map(|it| styled(Style::Yellow, &format!("degraded: {}", harmless(it)))));
    let width = report.probes.iter().map(|it| it.name.len()).max().unwrap_or_default();
    if !report.probes.is_empty() {
        lines.push(String::new());
        let heads = ["sent", "refused", "tunnel", "leaked"].map(|it| format!("{it:>8}"));
        lines.push(format!("{:width$}  {:11}{}", "way out", "verdict", heads.concat()));
    }
    for probe in &report.probes {
        lines.extend(show_probe(probe, width));
    }
    if !report.limits.is_empty() {
        lines.push(String::new());
        lines.push("not looked at:".into());
        lines.extend(report.limits.iter().map(|it| format!("  {}", harmless(it))));
    }
    if report.verdict == Verdict::Leaked && !report.probes.is_empty() {
        lines.push(String::new());
        lines.push(
            "next: `killswitch lock` mends the lock, `killswitch audit` says what goes".into(),
        );
        lines.push(
            "round it, `killswitch explain --line -` what should have stopped a frame".into(),
        );
    }
    lines
}

fn show_probe(probe: &Probe, width: usize) -> Vec<String> {
    /// As many frames as a terminal has room for; the document has more.
    const FRAMES: usize = 3;
    let numbers = [probe.sent, probe.refused, probe.tunnelled, probe.leaked];
    let numbers = numbers.map(|it| format!("{it:>8}")).concat();
    let verdict = styled(style(probe.verdict), &format!("{:11}", word(probe.verdict)));
    let reason = probe.reason.as_ref().map(|it| format!("  {}", harmless(it))).unwrap_or_default();
    let mut lines = vec![format!("{:width$}  {verdict}{numbers}{reason}", probe.name)];
    for frame in probe.frames.iter().take(FRAMES) {
        let words = format!("{} bytes on {}: {}", frame.length, frame.link, frame.what);
        lines.push(format!("{:width$}  {}", "", harmless(&words)));
    }
    lines
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "held",
        Verdict::Leaked => "LEAKED",
        Verdict::CannotTell => "cannot tell",
        Verdict::Allowed => "allowed",
    }
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Held | Verdict::Allowed => Style::Green,
        Verdict::Leaked => Style::Red,
        Verdict::CannotTell => Style::Yellow,
    }
}
