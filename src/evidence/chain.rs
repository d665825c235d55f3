//! What makes a line of the journal follow another: each begins with its number and with the SHA-256
//! of the whole line before it, end of line included, so that `sha256sum` alone can follow it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The journal's end: the number and the hash of its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// From 1; 0 before the first line.
    pub seq: u64,
    /// SHA-256 of that line, in hexadecimal.
    pub hash: String,
}

impl Head {
    /// Before the first line: zeros.
    pub fn start() -> Self {
        Head { seq: 0, hash: "0".repeat(64) }
    }

    /// From `SEQ:HASH`.
    pub fn parse(text: &str) -> Option<Self> {
        let (seq, hash) = text.trim().split_once(':')?;
        let hexadecimal = |it: char| it.is_ascii_digit() || ('a'..='f').contains(&it);
        let is_hash = hash.len() == 64 && hash.chars().all(hexadecimal);
        is_hash.then_some(Head { seq: seq.parse().ok()?, hash: hash.to_owned() })
    }

    /// What every line that follows begins with.
    fn prefix(&self) -> String {
        format!("{{\"seq\":{},\"previous\":\"{}\",", self.seq + 1, self.hash)
    }

    /// The line that follows with this body, a JSON object; the journal then ends with it.
    pub(super) fn link(&mut self, body: &str) -> String {
        let line = format!("{}{}\n", self.prefix(), body.strip_prefix('{').unwrap_or(body));
        *self = Head { seq: self.seq + 1, hash: hash(line.as_bytes()) };
        line
    }
}

impl fmt::Display for Head {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}", self.seq, self.hash)
    }
}

/// SHA-256 in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line's own end, and what it says it follows; `None`: it is none of ours.
pub(super) fn ends(line: &[u8]) -> Option<(Head, Head)> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (seq, after) = text.strip_prefix("{\"seq\":")?.split_once(',')?;
    let (previous, _) = after.strip_prefix("\"previous\":\"")?.split_once('"')?;
    let seq: u64 = seq.parse().ok()?;
    let before = Head::parse(&format!("{}:{previous}", seq.checked_sub(1)?))?;
    Some((before, Head { seq, hash: hash(line) }))
}

/// A line's body, as it was before it was chained.
pub(super) fn body(line: &[u8]) -> Option<String> {
    let (before, _) = ends(line)?;
    let text = std::str::from_utf8(line).ok()?.trim_end_matches('\n');
    Some(format!("{{{}", text.strip_prefix(&before.prefix())?))
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A line is not what follows: why.
    Line(String),
    /// Entries are missing before the first one, and none tells of a rotation that removed them.
    Beginning(Head),
    /// It has another line there than was noted, or ends before.
    Head {
        /// What was noted.
        noted: Head,
        /// What is there; `None`: it ends before.
        found: Option<String>,
    },
    /// What was noted has been rotated away since.
    TooOld(Head),
    /// When this entry was written, the journal had another end than was noted before.
    Cut(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Line(why) => to.write_str(why),
            Fault::Beginning(last) => write!(
                to,
                "entries 1 to {} are missing, and no rotation that is recorded removed them",
                last.seq
            ),
            Fault::Head { noted, found: Some(found) } => write!(
                to,
                "entry {} has the hash {found}, where {} was noted",
                noted.seq, noted.hash
            ),
            Fault::Head { noted, found: None } => {
                write!(to, "the journal ends before entry {}, which was noted", noted.seq)
            }
            Fault::Cut(seq) => {
                write!(to, "the journal was cut or edited before entry {seq}, which records it")
            }
            Fault::TooOld(noted) => {
                write!(to, "entry {} has been rotated away: note a newer head", noted.seq)
            }
        }
    }
}

/// Seconds: clock and CLOCK_BOOTTIME are not read at the same moment, and one is rounded.
const TOLERANCE: i64 = 2;

/// Follows a chain, line after line.
#[derive(Debug, Default)]
pub struct Follower {
    /// What the first line says it follows.
    first: Option<Head>,
    last: Option<Head>,
    /// Heads to be held against the lines: hashes found, by number.
    wanted: BTreeMap<u64, Option<String>>,
    /// Ends of files that were removed, as recorded.
    rotated: Vec<Head>,
    /// The first entry that records a cut.
    cut: Option<u64>,
    /// Of each boot: the last difference of clock and CLOCK_BOOTTIME so far, in seconds.
    clocks: BTreeMap<String, i64>,
    /// The last entry's time.
    latest: i64,
    /// What is odd, but breaks no chain.
    notes: Vec<String>,
}

impl Follower {
    /// With heads that were noted elsewhere.
    pub fn expecting(noted: &[Head]) -> Self {
        let wanted = noted.iter().map(|head| (head.seq, None)).collect();
        Follower { wanted, ..Follower::default() }
    }

    /// Takes the next line, its end included.
    ///
    /// # Errors
    /// If it does not follow.
    pub fn take(&mut self, line: &[u8]) -> Result<(), Fault> {
        let wrong = |why: String| Err(Fault::Line(why));
        if !line.ends_with(b"\n") {
            return wrong("it has no end: torn, or being written".into());
        }
        let Some((before, own)) = ends(line) else {
            return wrong("it does not begin with its number and the hash of another".into());
        };
        if !line.starts_with(before.prefix().as_bytes()) {
            return wrong("its number is not written as we do".into());
        }
        let Ok(entry) = serde_json::from_slice::<Map<String, Value>>(line) else {
            return wrong("it is no JSON object".into());
        };
        match &self.last {
            Some(last) if last.seq != before.seq => {
                return wrong(format!("entry {} follows entry {}", own.seq, last.seq));
            }
            Some(last) if last.hash != before.hash => {
                return wrong(format!(
                    "it follows another entry {} than the line before: one of the two was changed",
                    last.seq
                ));
            }
            None if before.seq == 0 && before != Head::start() => {
                return wrong("entry 1 follows nothing, so its \"previous\" is zeros".into());
            }
            None => self.first = Some(before),
            _ => {}
        }
        if let Some(found) = self.wanted.get_mut(&own.seq) {
            *found = Some(own.hash.clone());
        }
        self.look_at(&entry, own.seq);
        self.last = Some(own);
        Ok(())
    }

    fn look_at(&mut self, entry: &Map<String, Value>, seq: u64) {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("event") {
            "rotated" => self.rotated.extend(Head::parse(text("last"))),
            "cut" => self.cut = self.cut.or(Some(seq)),
            "torn" => self
                .notes
                .push(format!("entry {seq} records a torn line, kept in {}", text("kept"))),
            "lost" | "left_out" => self
                .notes
                .push(format!("entry {seq} records that {} entries are missing", entry["entries"])),
            _ => {}
        }
        let number = |key: &str| entry.get(key).and_then(Value::as_i64);
        if let (Some(time), Some(boottime)) = (number("time"), number("boottime_us")) {
            let boot = text("boot_id");
            let back = self.latest.saturating_sub(time);
            if back > TOLERANCE && !self.clocks.contains_key(boot) {
                self.notes
                    .push(format!("entry {seq}, of a later boot, is {back} s older by the clock"));
            }
            self.latest = time;
            self.look_at_clock(boot, time.saturating_sub(boottime / 1_000_000), seq);
        }
    }

    /// Of entries of one boot, clock and CLOCK_BOOTTIME differ by the same, unless somebody sets the
    /// clock. Their order does not matter: several write.
    fn look_at_clock(&mut self, boot: &str, offset: i64, seq: u64) {
        let known = self.clocks.entry(boot.to_owned()).or_insert(offset);
        let back = known.saturating_sub(offset);
        if back > TOLERANCE {
            self.notes.push(format!("before entry {seq} the clock was set back by {back} s"));
        }
        *known = offset;
    }

    /// The last line's; `None`: there was no line.
    pub fn head(&self) -> Option<&Head> {
        self.last.as_ref()
    }

    /// What is odd, but breaks no chain.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// At the end: what only the whole shows.
    ///
    /// # Errors
    /// If the beginning is missing unrecorded, or a noted head is not found.
    pub fn finish(&self, noted: &[Head]) -> Result<(), Fault> {
        for head in noted {
            self.find(head)?;
        }
        if let Some(seq) = self.cut {
            return Err(Fault::Cut(seq));
        }
        match &self.first {
            Some(first) if first.seq > 0 && !self.rotated.contains(first) => {
                Err(Fault::Beginning(first.clone()))
            }
            _ => Ok(()),
        }
    }

    fn find(&self, noted: &Head) -> Result<(), Fault> {
        let found = match self.wanted.get(&noted.seq) {
            Some(Some(hash)) => Some(hash.clone()),
            _ => match &self.first {
                Some(first) if first.seq == noted.seq => Some(first.hash.clone()),
                Some(first) if first.seq > noted.seq => {
                    return Err(Fault::TooOld(noted.clone()));
                }
                _ => None,
            },
        };
        match found {
            Some(hash) if hash == noted.hash => Ok(()),
            found => Err(Fault::Head { noted: noted.clone(), found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn journal(entries: usize) -> (Vec<String>, Head) {
        let mut head = Head::start();
        let line = |number| head.link(&format!("{{\"time\":{number},\"event\":\"state\"}}"));
        let lines = (0..entries).map(line).collect();
        (lines, head)
    }

    fn verify(text: &[u8], noted: &Head) -> Result<(), Fault> {
        let noted = std::slice::from_ref(noted);
        let mut follower = Follower::expecting(noted);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            follower.take(line)?;
        }
        follower.finish(noted)
    }

    #[test]
    fn what_was_chained_is_whole() {
        let (lines, head) = journal(20);
        assert_eq!(verify(lines.concat().as_bytes(), &head), Ok(()));
        assert_eq!(body(lines[3].as_bytes()).unwrap(), "{\"time\":3,\"event\":\"state\"}");
        assert_eq!(hash(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn a_rotation_differs_from_a_cut() {
        let (lines, mut head) = journal(6);
        let (_, removed) = ends(lines[2].as_bytes()).unwrap();
        let kept = lines[3..].concat();
        assert_eq!(verify(kept.as_bytes(), &head), Err(Fault::Beginning(removed.clone())));
        let told = head.link(&format!("{{\"event\":\"rotated\",\"last\":\"{removed}\"}}"));
        assert_eq!(verify((kept.clone() + &told).as_bytes(), &head), Ok(()));
        // One line more is gone than the rotation took.
        let less = lines[4..].concat() + &told;
        assert!(matches!(verify(less.as_bytes(), &head), Err(Fault::Beginning(_))));
        let (_, early) = ends(lines[0].as_bytes()).unwrap();
        assert_eq!(verify((kept + &told).as_bytes(), &early), Err(Fault::TooOld(early)));
    }

    #[test]
    fn a_clock_set_back_shows() {
        let mut head = Head::start();
        let mut follower = Follower::default();
        let entries =
            [("a", 1000, 10), ("a", 1010, 20), ("a", 400, 30), ("b", 500, 2), ("c", 70, 3)];
        for (boot, time, boottime_s) in entries {
            let body = format!(
                "{{\"time\":{time},\"boot_id\":\"{boot}\",\"boottime_us\":{}}}",
                boottime_s * 1_000_000
            );
            follower.take(head.link(&body).as_bytes()).unwrap();
        }
        let notes = [
            "before entry 3 the clock was set back by 620 s",
            "entry 5, of a later boot, is 430 s older by the clock",
        ];
        assert_eq!(follower.notes(), notes);
    }

    proptest! {
        #[test]
        fn any_byte_changed_is_found(
            entries in 1..12_usize, at in any::<prop::sample::Index>(), flip in 1..=255_u8,
        ) {
            let (lines, head) = journal(entries);
            let mut bytes = lines.concat().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(verify(&bytes, &head).is_err());
        }

        #[test]
        fn any_byte_inserted_or_cut_is_found(
            entries in 1..12_usize, at in any::<prop::sample::Index>(), new in any::<u8>(),
        ) {
            let (lines, head) = journal(entries);
            let whole = lines.concat().into_bytes();
            let at = at.index(whole.len());
            let mut more = whole.clone();
            more.insert(at, new);
            prop_assert!(verify(&more, &head).is_err());
            let mut less = whole.clone();
            less.remove(at);
            prop_assert!(verify(&less, &head).is_err());
            prop_assert!(verify(&whole[..at], &head).is_err());
        }

        #[test]
        fn any_line_removed_doubled_or_swapped_is_found(
            entries in 2..12_usize, one in any::<prop::sample::Index>(),
            other in any::<prop::sample::Index>(),
        ) {
            let (lines, head) = journal(entries);
            let (one, other) = (one.index(entries), other.index(entries));
            let mut less = lines.clone();
            less.remove(one);
            prop_assert!(verify(less.concat().as_bytes(), &head).is_err());
            let mut more = lines.clone();
            more.insert(other, lines[one].clone());
            prop_assert!(verify(more.concat().as_bytes(), &head).is_err());
            let mut swapped = lines.clone();
            swapped.swap(one, other);
            prop_assert_eq!(verify(swapped.concat().as_bytes(), &head).is_err(), one != other);
        }

        /// Also by somebody who makes a whole chain of it again.
        #[test]
        fn a_journal_that_was_chained_anew_does_not_fit_the_noted_head(
            entries in 1..12_usize, at in any::<prop::sample::Index>(),
        ) {
            let (_, noted) = journal(entries);
            let mut head = Head::start();
            let at = at.index(entries);
            let line = |number| {
                let word = if number == at { "other" } else { "state" };
                head.link(&format!("{{\"time\":{number},\"event\":\"{word}\"}}"))
            };
            let lines: Vec<String> = (0..entries).map(line).collect();
            prop_assert!(verify(lines.concat().as_bytes(), &head).is_ok());
            prop_assert!(verify(lines.concat().as_bytes(), &noted).is_err());
        }
    }
}
