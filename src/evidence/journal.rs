//! The journal's files, and how what waits gets into them.
//!
//! The files are called `SEQ.jsonl`, by the number of their first line, and `torn-SEQ`, what a dying
//! writer left. One process folds at a time; it may be killed at any moment, and the next one goes on:
//! what is folding stays until its lines are in the journal, and those that are in it already are known
//! by what they say.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::chain::{self, Head};
use super::record::{LONGEST, Record, What};
use super::{Places, spool};

/// When files change, how many stay, and how long one waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes, from which on a new file is begun.
    pub file: u64,
    /// Files that stay.
    pub files: usize,
    /// For another process that folds.
    pub patience: Duration,
}

/// The daemon's: 32 MB in all.
pub const LIMITS: Limits = Limits { file: 4 << 20, files: 8, patience: Duration::from_secs(2) };
/// A command's, which must end.
pub const OF_COMMANDS: Limits = Limits { patience: Duration::from_millis(200), ..LIMITS };

/// What came of folding.
#[derive(Debug)]
pub enum Folded {
    /// Nothing waited.
    Nothing,
    /// The journal's place is not there yet: what waits goes on waiting.
    NotMounted,
    /// The journal ends so now; its file, to be synchronised by whoever can wait.
    To(Head, File),
}

/// Folds in what waits. Whatever fails, nothing that waits is lost.
///
/// # Errors
/// Those of files; [`ErrorKind::TimedOut`] if another process folds for long.
pub fn fold(places: &Places, limits: Limits) -> io::Result<Folded> {
    if !places.pending().exists() && !places.folding().exists() {
        return Ok(Folded::Nothing);
    }
    if !is_mounted(places) {
        return Ok(Folded::NotMounted);
    }
    let turn = spool::open_private(OpenOptions::new().write(true), &places.turn())?;
    let _turn = spool::lock_within(turn, limits.patience)?;
    if let Some(above) = places.journal.parent() {
        spool::private_directory(above)?;
    }
    spool::private_directory(&places.journal)?;
    // Another system that runs, with a /run of its own, may have the same journal.
    let _sole = spool::lock_within(spool::open_directory(&places.journal)?, limits.patience)?;
    let mut journal = Journal::open(&places.journal)?;
    journal.set_torn_aside(places)?;
    // Before anything else is written: what is known by the journal's end would not be known any more.
    forget_what_is_in(&journal, places)?;
    if let Some(cut) = journal.cut_since(&noted_head(places)) {
        journal.add(&[cut])?;
    }
    journal.rotate(limits)?;
    // Twice at most: what was being folded when somebody died, and what has come since.
    for _ in 0..2 {
        let bodies = journal.bodies(&spool::take(places)?)?;
        journal.add_bodies(&bodies)?;
        note_head(places, &journal.head)?;
        match fs::remove_file(places.folding()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if !places.pending().exists() {
            break;
        }
    }
    Ok(Folded::To(journal.head, journal.file))
}

fn is_mounted(places: &Places) -> bool {
    let Ok(entries) = fs::read_dir(&places.mounted) else { return false };
    // Ours may have been made by somebody who did not look.
    entries.flatten().any(|entry| entry.file_name() != "killswitch")
}

/// The files of the journal, oldest first.
///
/// # Errors
/// Those of the directory.
pub fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let stem = path.file_stem().and_then(|it| it.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|it| it == "jsonl") && stem.parse::<u64>().is_ok() {
            if !entry.file_type()?.is_file() {
                return Err(spool::irregular(&path));
            }
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The head as it was noted last in this boot.
pub fn noted_head(places: &Places) -> Option<Head> {
    Head::parse(std::str::from_utf8(&spool::read_private(&places.head()).ok()?).ok()?)
}

fn note_head(places: &Places, head: &Head) -> io::Result<()> {
    let new = places.head().with_extension("new");
    let mut file = spool::open_private(OpenOptions::new().write(true).truncate(true), &new)?;
    writeln!(file, "{head}")?;
    fs::rename(new, places.head())
}

/// The end of the journal, being written to.
struct Journal {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    length: u64,
    head: Head,
    /// The last bytes of the journal, from a line's beginning on.
    tail: Vec<u8>,
}

/// How much of a file is read to know its end: all that folding may have written before somebody died.
const TAIL: u64 = 2 << 20;

impl Journal {
    fn open(directory: &Path) -> io::Result<Self> {
        let files = files(directory)?;
        let mut head = Head::start();
        let mut tail = Vec::new();
        // The newest may be empty, if somebody died who had just begun it.
        for path in files.iter().rev() {
            tail = end_of(&mut File::open(path)?)?;
            if let Some((_, last)) = whole_lines(&tail).last().and_then(chain::ends) {
                head = last;
                break;
            }
            // Lines that are none of ours, or cut off the beginning of a torn one: the chain goes on
            // from what can be read before it, and verifying says where it breaks.
        }
        let path = files.last().cloned().unwrap_or_else(|| directory.join(name(1)));
        Self::at(directory, path, head, tail)
    }

    fn at(directory: &Path, path: PathBuf, head: Head, tail: Vec<u8>) -> io::Result<Self> {
        let file = spool::open_private(OpenOptions::new().read(true).append(true), &path)?;
        let length = file.metadata()?.len();
        Ok(Journal { directory: directory.to_owned(), path, file, length, head, tail })
    }

    /// What a writer that died left of a line is put into a file of its own, and recorded first.
    fn set_torn_aside(&mut self, places: &Places) -> io::Result<()> {
        let own = end_of(&mut self.file)?;
        let whole = own.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = &own[whole..];
        if torn.is_empty() {
            return Ok(());
        }
        let what = self.keep_torn(torn, &self.path)?;
        spool::append_whatever_waits(places, &Record::now(what).body())?;
        self.length -= torn.len() as u64;
        self.file.set_len(self.length)
    }

    fn keep_torn(&self, torn: &[u8], of: &Path) -> io::Result<What> {
        let hash = chain::hash(torn);
        let kept = self.directory.join(format!("torn-{}-{}", self.head.seq + 1, &hash[..8]));
        let mut file = spool::open_private(OpenOptions::new().write(true).truncate(true), &kept)?;
        file.write_all(torn)?;
        Ok(What::Torn {
            file: of.display().to_string(),
            kept: kept.display().to_string(),
            bytes: torn.len() as u64,
            sha256: hash,
        })
    }

    /// Whether somebody has cut or edited the journal since its head was noted in this boot.
    fn cut_since(&self, noted: &Option<Head>) -> Option<What> {
        let noted = noted.as_ref()?;
        // It is behind where somebody was killed before noting it.
        let found = *noted == self.head
            || whole_lines(&self.tail)
                .filter_map(chain::ends)
                .any(|(before, own)| before == *noted || own == *noted);
        (!found).then(|| What::Cut { noted: noted.to_string(), found: self.head.to_string() })
    }

    /// Begins a new file where this one is long enough; the oldest goes once that is recorded.
    fn rotate(&mut self, limits: Limits) -> io::Result<()> {
        if self.length < limits.file {
            return Ok(());
        }
        let path = self.directory.join(name(self.head.seq + 1));
        *self = Self::at(&self.directory, path, self.head.clone(), std::mem::take(&mut self.tail))?;
        let files = files(&self.directory)?;
        for oldest in &files[..files.len().saturating_sub(limits.files)] {
            let tail = end_of(&mut File::open(oldest)?)?;
            let last = whole_lines(&tail).last().and_then(chain::ends);
            let last = last.map(|(_, head)| head.to_string()).unwrap_or_default();
            let removed = oldest.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.add(&[What::Rotated { removed, last }])?;
            // Lost with the power, a rotation would be a cut.
            self.file.sync_data()?;
            fs::remove_file(oldest)?;
        }
        Ok(())
    }

    fn add(&mut self, what: &[What]) -> io::Result<()> {
        let bodies: Vec<String> = what.iter().map(|it| Record::now(it.clone()).body()).collect();
        self.add_bodies(&bodies)
    }

    /// All or none, unless we are killed within.
    fn add_bodies(&mut self, bodies: &[String]) -> io::Result<()> {
        let mut head = self.head.clone();
        let text: String = bodies.iter().map(|body| head.link(body)).collect();
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += text.len() as u64;
        self.head = head;
        Ok(())
    }

    /// What waits, line by line; what is none of ours is kept aside, and recorded in its place.
    fn bodies(&self, bytes: &[u8]) -> io::Result<Vec<String>> {
        let mut bodies = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let body = std::str::from_utf8(line).ok().filter(|text| is_record(text));
            bodies.push(match body {
                Some(body) => body.to_owned(),
                None => {
                    let from = Path::new("evidence-pending.jsonl");
                    Record::now(self.keep_torn(line, from)?).body()
                }
            });
        }
        Ok(bodies)
    }
}

fn name(seq: u64) -> String {
    format!("{seq:010}.jsonl")
}

/// An object without what the chain adds, of a length that we would write.
fn is_record(text: &str) -> bool {
    let object = || serde_json::from_str::<Map<String, Value>>(text);
    text.len() <= LONGEST
        && !text.starts_with("{\"seq\"")
        && object().is_ok_and(|it| it.contains_key("event") && !it.contains_key("previous"))
}

/// Takes out of what is folding what is in the journal already, since somebody was killed in between.
fn forget_what_is_in(journal: &Journal, places: &Places) -> io::Result<()> {
    if !places.folding().exists() {
        return Ok(());
    }
    let mut bytes = spool::read_private(&places.folding())?;
    let waiting: Vec<&[u8]> = whole_lines(&bytes).collect();
    let written: Vec<String> = whole_lines(&journal.tail).filter_map(chain::body).collect();
    let is_end = |count: &usize| {
        let mut pairs = written[written.len() - count..].iter().zip(&waiting);
        pairs.all(|(body, line)| match std::str::from_utf8(line.trim_ascii_end()) {
            Ok(text) if is_record(text) => text == body,
            _ => true,
        })
    };
    let most = waiting.len().min(written.len());
    let Some(known) = (1..=most).rev().find(is_end) else { return Ok(()) };
    let length = waiting[..known].iter().map(|line| line.len()).sum();
    let rest = bytes.split_off(length);
    let new = places.folding().with_extension("new");
    let mut file = spool::open_private(OpenOptions::new().write(true).truncate(true), &new)?;
    file.write_all(&rest)?;
    fs::rename(new, places.folding())
}

fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// The end of a file, from a line's beginning on if it is long.
fn end_of(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    if from > 0 {
        let begin = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.drain(..begin);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::verify::{Verdict, verify};
    use super::*;

    struct Shelf {
        folder: tempfile::TempDir,
        places: Places,
    }

    impl Shelf {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir_all(at("lib/something")).unwrap();
            let journal = at("lib/killswitch/evidence");
            let places = Places { run: at("run"), mounted: at("lib"), journal };
            Shelf { folder, places }
        }

        fn note(&self, repairs: std::ops::Range<u64>) {
            for repairs in repairs {
                let record = Record::now(What::Repaired { repairs });
                spool::append(&self.places, &record.body()).unwrap();
            }
        }

        fn fold(&self) -> Folded {
            fold(&self.places, LIMITS).unwrap()
        }

        fn verify(&self) -> Verdict {
            let noted: Vec<Head> = noted_head(&self.places).into_iter().collect();
            verify(&files(&self.places.journal).unwrap(), &noted).unwrap()
        }

        fn entries(&self) -> Vec<Map<String, Value>> {
            let files = files(&self.places.journal).unwrap();
            let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }

        /// Numbers of entries of this kind.
        fn found(&self, event: &str, key: &str) -> Vec<u64> {
            let entries = self.entries();
            let of = entries.iter().filter(|it| it["event"] == event);
            of.map(|it| it[key].as_u64().unwrap()).collect()
        }

        fn newest(&self) -> PathBuf {
            files(&self.places.journal).unwrap().pop().unwrap()
        }
    }

    #[test]
    fn what_waits_is_folded_in_in_order() {
        let shelf = Shelf::new();
        assert!(matches!(shelf.fold(), Folded::Nothing));
        shelf.note(0..5);
        assert!(matches!(shelf.fold(), Folded::To(Head { seq: 5, .. }, _)));
        shelf.note(5..7);
        shelf.fold();
        let verdict = shelf.verify();
        assert!(verdict.broken.is_none() && verdict.entries == 7, "{verdict:?}");
        assert_eq!(shelf.found("repaired", "repairs"), [0, 1, 2, 3, 4, 5, 6]);
        assert!(!shelf.places.pending().exists() && !shelf.places.folding().exists());
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&shelf.newest()), mode(&shelf.places.journal)), (0o600, 0o700));
        assert_eq!((mode(&shelf.places.head()), mode(&shelf.places.run)), (0o600, 0o700));
    }

    #[test]
    fn nothing_is_written_below_an_empty_mount_point() {
        let shelf = Shelf::new();
        shelf.note(0..1);
        fs::remove_dir(shelf.folder.path().join("lib/something")).unwrap();
        assert!(matches!(shelf.fold(), Folded::NotMounted));
        assert!(!shelf.folder.path().join("lib/killswitch").exists());
        fs::create_dir(shelf.folder.path().join("lib/something")).unwrap();
        assert!(matches!(shelf.fold(), Folded::To(Head { seq: 1, .. }, _)));
    }

    /// Whoever folds is killed after any number of bytes: nothing is lost, nothing is there twice, and
    /// what was torn is kept and recorded.
    #[test]
    fn a_death_at_any_byte_costs_nothing() {
        let shelf = Shelf::new();
        shelf.note(0..2);
        shelf.fold();
        let before = fs::read(shelf.newest()).unwrap();
        let head = fs::read(shelf.places.head()).unwrap();
        shelf.note(2..5);
        let waiting = fs::read(shelf.places.pending()).unwrap();
        shelf.fold();
        let after = fs::read(shelf.newest()).unwrap();
        for length in before.len()..=after.len() {
            fs::write(shelf.newest(), &after[..length]).unwrap();
            fs::write(shelf.places.head(), &head).unwrap();
            fs::write(shelf.places.folding(), &waiting).unwrap();
            shelf.fold();
            let verdict = shelf.verify();
            assert!(verdict.broken.is_none(), "{length}: {verdict:?}");
            assert_eq!(shelf.found("repaired", "repairs"), [0, 1, 2, 3, 4], "{length}");
            let torn = after[..length].iter().rev().take_while(|byte| **byte != b'\n').count();
            let told = if torn == 0 { vec![] } else { vec![torn as u64] };
            assert_eq!(shelf.found("torn", "bytes"), told, "{length}");
            if torn > 0 {
                let entries = shelf.entries();
                let entry = entries.iter().find(|it| it["event"] == "torn").unwrap();
                let kept = fs::read(entry["kept"].as_str().unwrap()).unwrap();
                assert_eq!(kept, after[length - torn..length]);
                assert_eq!(entry["sha256"], chain::hash(&kept));
            }
        }
    }

    #[test]
    fn a_writer_that_died_within_a_line_is_recorded() {
        let shelf = Shelf::new();
        shelf.note(0..1);
        let whole = fs::read(shelf.places.pending()).unwrap();
        let torn = [&whole[..], &whole[..20]].concat();
        fs::write(shelf.places.pending(), torn).unwrap();
        shelf.note(1..2);
        shelf.fold();
        assert!(shelf.verify().broken.is_none());
        assert_eq!(shelf.found("repaired", "repairs"), [0, 1]);
        assert_eq!(shelf.found("torn", "bytes"), [20]);
    }

    #[test]
    fn files_change_and_the_oldest_goes() {
        let shelf = Shelf::new();
        let limits = Limits { file: 1000, files: 3, ..LIMITS };
        for number in 0..60 {
            shelf.note(number..number + 1);
            fold(&shelf.places, limits).unwrap();
        }
        assert_eq!(files(&shelf.places.journal).unwrap().len(), 3);
        let verdict = shelf.verify();
        assert!(verdict.broken.is_none(), "{verdict:?}");
        let oldest = files(&shelf.places.journal).unwrap().remove(0);
        fs::remove_file(oldest).unwrap();
        let verdict = shelf.verify();
        assert!(
            matches!(&verdict.broken, Some(it) if matches!(it.why, chain::Fault::Beginning(_))),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_cut_and_an_edit_are_recorded() {
        for cut in [true, false] {
            let shelf = Shelf::new();
            shelf.note(0..3);
            shelf.fold();
            let text = fs::read_to_string(shelf.newest()).unwrap();
            let last = text.trim_end().rfind('\n').unwrap() + 1;
            let other = match cut {
                true => text[..last].to_owned(),
                false => format!("{}{}", &text[..last], text[last..].replace("2}", "7}")),
            };
            assert_ne!(text, other);
            fs::write(shelf.newest(), other).unwrap();
            assert!(shelf.verify().broken.is_some());
            shelf.note(3..4);
            shelf.fold();
            let verdict = shelf.verify();
            let told =
                matches!(&verdict.broken, Some(it) if matches!(it.why, chain::Fault::Cut(_)));
            assert!(told, "{verdict:?}");
        }
    }

    /// Somebody else's writing into the spool cannot pass for a line of the chain.
    #[test]
    fn what_is_no_record_is_kept_aside() {
        let shelf = Shelf::new();
        shelf.note(0..1);
        let forged = "{\"seq\":9,\"previous\":\"0\",\"event\":\"unlock\"}\nnonsense\n{}\n";
        let waiting = fs::read_to_string(shelf.places.pending()).unwrap();
        fs::write(shelf.places.pending(), format!("{forged}{waiting}")).unwrap();
        shelf.fold();
        let events: Vec<Value> = shelf.entries().iter().map(|it| it["event"].clone()).collect();
        assert_eq!(events, ["torn", "torn", "torn", "repaired"]);
        assert!(shelf.verify().broken.is_none());
    }

    /// Whatever stands where one of our files should: an error in time, and nothing that waits is lost.
    #[test]
    fn what_is_no_file_keeps_nobody_waiting() {
        let long = Duration::from_secs(60);
        let names: [fn(&Places) -> PathBuf; 5] =
            [Places::pending, Places::folding, Places::turn, Places::head, |places| {
                places.journal.join("0000009999.jsonl")
            }];
        for name in names {
            let shelf = Shelf::new();
            shelf.note(0..1);
            shelf.fold();
            let path = name(&shelf.places);
            let _ = fs::remove_file(&path);
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            let (done, wait) = std::sync::mpsc::channel();
            let places = shelf.places.clone();
            std::thread::spawn(move || {
                let body = Record::now(What::Repaired { repairs: 1 }).body();
                let noted = spool::append(&places, &body).is_ok();
                let folded = fold(&places, LIMITS).is_ok();
                super::super::verify::waiting(&places);
                let _ = done.send((noted, folded, super::super::verify::files(&places).is_ok()));
            });
            let (noted, folded, _) = wait.recv_timeout(long).expect("an end");
            assert_eq!(noted, path != shelf.places.pending(), "{}", path.display());
            assert_eq!(folded, path == shelf.places.head(), "{}", path.display());
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap_or_default();
            let _ = shelf.fold();
            let found = shelf.found("repaired", "repairs");
            assert_eq!(found.contains(&1), noted, "{}: {found:?}", path.display());
        }
    }

    /// Each has a /run of its own, and what was noted in it.
    #[test]
    fn two_systems_with_one_journal() {
        let shelf = Shelf::new();
        std::thread::scope(|scope| {
            for system in 0..2 {
                let run = shelf.folder.path().join(format!("run{system}"));
                let places = Places { run, ..shelf.places.clone() };
                scope.spawn(move || {
                    for number in 0..100 {
                        let what = What::Repaired { repairs: system * 1000 + number };
                        spool::append(&places, &Record::now(what).body()).unwrap();
                        fold(&places, LIMITS).unwrap();
                    }
                });
            }
        });
        let verdict = shelf.verify();
        assert!(verdict.broken.is_none() && verdict.entries == 200, "{verdict:?}");
        assert_eq!(shelf.found("repaired", "repairs").len(), 200);
    }

    #[test]
    fn several_write_and_fold_at_once() {
        let shelf = Shelf::new();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for number in 0..50 {
                        shelf.note(writer * 100 + number..writer * 100 + number + 1);
                        let _ = fold(&shelf.places, Limits { file: 20_000, files: 100, ..LIMITS });
                    }
                });
            }
        });
        shelf.fold();
        let verdict = shelf.verify();
        assert!(verdict.broken.is_none() && verdict.entries == 200, "{verdict:?}");
        let mut found = shelf.found("repaired", "repairs");
        found.sort_unstable();
        let all: Vec<u64> = (0..4).flat_map(|it| it * 100..it * 100 + 50).collect();
        assert_eq!(found, all);
    }
}
