//! `evidence`: the journal, shown, verified and exported; and what commands add to it.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::geteuid;
use serde::Serialize;
use serde_json::{Map, Value};

use super::args::{
    Arguments, Command, EvidenceCommand, ExportEvidence, ExportFormat, ShowEvidence, VerifyEvidence,
};
use super::new_file::NewFile;
use super::output::{self, json, one_line, say, stream};
use super::status::CANNOT_TELL;
use super::{FAILED, Failure, NOT_PERMITTED, ssh};
use crate::evidence::chain::{Fault, Head};
use crate::evidence::verify::{self, Broken, Verdict, verify};
use crate::evidence::{self, Caller, Places, What, html, journal, words};

pub(super) fn evidence(arguments: &Arguments, command: &EvidenceCommand) -> Result<u8, Failure> {
    match command {
        EvidenceCommand::Show(options) => show(arguments, options),
        EvidenceCommand::Verify(options) => verify_files(arguments, options),
        EvidenceCommand::Export(options) => export(arguments, options),
    }
}

type Entry = Map<String, Value>;

fn show(arguments: &Arguments, options: &ShowEvidence) -> Result<u8, Failure> {
    let places = Places::default();
    let since = options.since.as_deref().map(since).transpose()?;
    let mut shown = VecDeque::new();
    let mut take = |line: Vec<u8>| {
        // What cannot be read is shown in any case.
        let time = || parse(&line)?.get("time")?.as_u64();
        if since.is_none_or(|since| time().is_none_or(|time| time >= since)) {
            shown.push_back(line);
        }
        if options.last.is_some_and(|last| shown.len() > last) {
            shown.pop_front();
        }
    };
    {
        let _turn = verify::turn(&places);
        for path in files(&places)? {
            for line in verify::lines(&path)? {
                take(line?);
            }
        }
        verify::waiting(&places).into_iter().for_each(&mut take);
    }
    for line in shown {
        let raw = String::from_utf8_lossy(&line);
        let entry = if arguments.json { None } else { parse(&line) };
        let text = match (arguments.json, entry) {
            (true, _) => raw.trim_end().to_owned(),
            (false, Some(entry)) => one_line(&words::line(&entry)),
            (false, None) => format!("     ?  unreadable: {}", one_line(raw.trim_end())),
        };
        // Nobody reads any more.
        if stream(&text).is_err() {
            break;
        }
    }
    Ok(0)
}

/// As bytes an entry takes a sixth of what it takes in parts: there may be 100,000.
fn parse(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

/// Seconds since 1970.
fn since(text: &str) -> Result<u64, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--since {text:?} is neither a duration nor a time\n\
             help: e.g. 90m, 2d, 2026-11-22 or \"2026-11-22 08:00:00\", in UTC"
        ))
    };
    let begin = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH),
        Err(_) => {
            let midnight = if text.len() == "2026-11-22".len() { " 00:00:00" } else { "" };
            humantime::parse_rfc3339_weak(&format!("{text}{midnight}")).map_err(|_| wrong())?
        }
    };
    Ok(begin.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// There may be no journal yet.
fn files(places: &Places) -> Result<Vec<std::path::PathBuf>, Failure> {
    match verify::files(places) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Err(refused(&error)),
        Err(error) => Err(unreadable(&places.journal, &error)),
        Ok(files) => Ok(files),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    refused(&std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// With the file's name in it.
fn refused(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Failure::new(NOT_PERMITTED, error.to_string()).helped("run this as root")
        }
        _ => Failure::new(FAILED, error.to_string()),
    }
}

/// What `verify --json` prints.
#[derive(Serialize)]
struct Verified {
    verdict: &'static str,
    entries: u64,
    head: Option<String>,
    waiting: usize,
    notes: Vec<String>,
    file: Option<String>,
    line: Option<u64>,
}

fn verify_files(arguments: &Arguments, options: &VerifyEvidence) -> Result<u8, Failure> {
    let cannot_tell = |failure: Failure| Failure { code: CANNOT_TELL, ..failure };
    let places = Places::default();
    let own = options.file.is_empty();
    let mut noted: Vec<Head> = options.head.iter().cloned().collect();
    let turn = own.then(|| verify::turn(&places));
    let files = match own {
        true => files(&places).map_err(cannot_tell)?,
        false => options.file.clone(),
    };
    let waiting = if own { verify::waiting(&places).len() } else { 0 };
    if own {
        noted.extend(journal::noted_head(&places));
    }
    if files.is_empty() && noted.is_empty() {
        let words = format!("there is no journal in {}", places.journal.display());
        return Err(Failure::new(CANNOT_TELL, words)
            .helped("it begins with the daemon, or with the next lock"));
    }
    let verdict = verify(&files, &noted).map_err(|error| cannot_tell(refused(&error)))?;
    drop(turn);
    judge(arguments, verdict, waiting, own)
}

fn judge(
    arguments: &Arguments,
    verdict: Verdict,
    waiting: usize,
    own: bool,
) -> Result<u8, Failure> {
    let Verdict { entries, head, notes, broken } = verdict;
    let code = broken.as_ref().map(|broken| exit_status(&broken.why, own));
    let place = broken.as_ref().and_then(|it| it.file.as_ref());
    let report = Verified {
        verdict: match code {
            None => "whole",
            Some(CANNOT_TELL) => "cannot tell",
            Some(_) => "broken",
        },
        entries,
        head: head.map(|head| head.to_string()),
        waiting,
        notes,
        file: place.map(|path| path.display().to_string()),
        line: broken.as_ref().and_then(|it| it.line),
    };
    if let (Some(code), Some(broken)) = (code, &broken) {
        report.notes.iter().for_each(|note| output::warning(note));
        return Err(Failure::new(code, place_and_reason(broken)).with(&report));
    }
    if arguments.json {
        json(&report);
        return Ok(0);
    }
    say(&format!("whole: {entries} entries, head {}", report.head.as_deref().unwrap_or("none")));
    report.notes.iter().for_each(|note| say(&format!("note: {}", one_line(note))));
    if waiting > 0 {
        say(&format!("note: {waiting} entries wait in memory to be added"));
    }
    Ok(0)
}

/// Of somebody's files, those before may be elsewhere.
fn exit_status(why: &Fault, own: bool) -> u8 {
    match why {
        Fault::TooOld(_) => CANNOT_TELL,
        Fault::Beginning(_) if !own => CANNOT_TELL,
        _ => FAILED,
    }
}

fn place_and_reason(broken: &Broken) -> String {
    let Broken { file, line, why } = broken;
    match (file, line) {
        (Some(file), Some(line)) => format!("{}:{line}: {why}", file.display()),
        _ => why.to_string(),
    }
}

fn export(arguments: &Arguments, options: &ExportEvidence) -> Result<u8, Failure> {
    #[derive(Serialize)]
    struct Exported {
        file: String,
        entries: u64,
        head: Option<String>,
    }
    let places = Places::default();
    let _turn = verify::turn(&places);
    let files = files(&places)?;
    let mut bytes = Vec::new();
    for path in &files {
        bytes.extend(std::fs::read(path).map_err(|error| unreadable(path, &error))?);
    }
    let noted: Vec<Head> = journal::noted_head(&places).into_iter().collect();
    let verdict = verify(&files, &noted).map_err(|error| refused(&error))?;
    let head = verdict.head.as_ref().map(ToString::to_string);
    if options.format == ExportFormat::Html {
        let entries = bytes.split(|byte| *byte == b'\n').filter_map(parse);
        let broken = verdict.broken.as_ref().map(place_and_reason);
        bytes = html::page(entries, head.as_deref(), broken.as_deref()).into_bytes();
    }
    let Some(path) = &options.output else {
        output::document(&bytes);
        return Ok(0);
    };
    NewFile::open(path, 0o600)?.put(&bytes)?;
    let (file, entries) = (path.display().to_string(), verdict.entries);
    match arguments.json {
        true => json(&Exported { file, entries, head }),
        false => say(&format!("{entries} entries in {file}, head {}", head.unwrap_or_default())),
    }
    if let Some(broken) = &verdict.broken {
        output::warning(&format!("the journal is broken: {}", place_and_reason(broken)));
    }
    Ok(0)
}

/// A command that changes something is typed: by whom, from where, and why. Others than root ask the
/// daemon, which knows who they are.
pub(super) fn typed(command: &str, reason: &str) -> Caller {
    let ssh = ssh::session().map(|session| session.client().to_string());
    let by = Caller::here(ssh);
    if geteuid().is_root() {
        let (command, reason) = (command.to_owned(), evidence::clipped(reason));
        note(What::Command { command, by: by.clone(), reason });
    }
    by
}

/// What came of it. It is in memory then; the command never fails for it.
pub(super) fn note(what: What) {
    if let Err(error) = evidence::note(what) {
        output::warning(&format!("not recorded as evidence: {error}"));
    }
}

/// At the end of a command what waits is folded in, unless a daemon does it, or it is too early in the
/// boot. What cannot be written waits on; a disk may never answer, and has a few seconds.
pub(super) fn after(command: &Command) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let folds = match command {
        Command::Lock(options) => !options.boot,
        Command::Unlock(_) | Command::Reload(_) | Command::Exception(_) => true,
        _ => false,
    };
    if folds && geteuid().is_root() && !crate::dbus::client::runs() {
        let (done, wait) = std::sync::mpsc::channel();
        // It dies with the program, unless the disk holds it in a sleep that nothing interrupts.
        std::thread::spawn(move || done.send(evidence::fold()));
        let _ = wait.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ago = now - since("2h").unwrap();
        assert!((7100..=7200).contains(&ago), "{ago}");
        assert_eq!(since("1970-01-02").unwrap(), 86400);
        assert_eq!(since("1970-01-01 00:01:00").unwrap(), 60);
        assert_eq!(since("1970-01-01T00:01:00Z").unwrap(), 60);
        assert_eq!(since("yesterday").unwrap_err().code, 2);
    }
}
