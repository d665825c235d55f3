//! The book of exceptions: what is open for a while besides the configuration, and until when.
//!
//! Pure: time is an argument. It lives in the daemon's memory alone, so whatever ends the daemon ends
//! them all: the next one begins with an empty book.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::Time;
use crate::policy::Exception;

/// How long an exception may last.
pub const DURATION: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

/// At the same time; whoever needs more needs another configuration.
pub const MOST: usize = 32;

/// Exceptions by their numbers, which begin with 1 and do not come again.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<u32, Entry>,
    last: u32,
}

/// One exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is open.
    pub exception: Exception,
    /// When it is to be closed.
    pub ends: Time,
    phase: Phase,
}

/// The kernel follows a while after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Closing,
}

impl Book {
    /// Notes one that is about to be opened: its number, or `None` if there are too many.
    pub fn add(&mut self, exception: Exception, ends: Time) -> Option<u32> {
        if self.entries.len() >= MOST {
            return None;
        }
        self.last = self.last.checked_add(1)?;
        self.entries.insert(self.last, Entry { exception, ends, phase: Phase::Opening });
        Some(self.last)
    }

    /// It is open, unless it was ended meanwhile.
    pub fn opened(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.phase == Phase::Opening
        {
            entry.phase = Phase::Open;
        }
    }

    /// It could not be opened.
    pub fn failed(&mut self, id: u32) {
        self.entries.remove(&id);
    }

    /// From now on it is to be closed; `None`: there is none of this number, or it is to be closed
    /// already.
    pub fn end(&mut self, id: u32) -> Option<&Entry> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.phase != Phase::Closing)?;
        entry.phase = Phase::Closing;
        Some(entry)
    }

    /// The numbers of those that are to be open no longer at this time.
    pub fn due(&self, now: Time) -> Vec<u32> {
        self.lasting().filter(|(_, entry)| entry.ends <= now).map(|(id, _)| id).collect()
    }

    /// The numbers of all that are not to be closed yet.
    pub fn all(&self) -> Vec<u32> {
        self.lasting().map(|(id, _)| id).collect()
    }

    /// When the next one is due.
    pub fn deadline(&self) -> Option<Time> {
        self.lasting().map(|(_, entry)| entry.ends).min()
    }

    /// What the lock is to leave open.
    pub fn wanted(&self) -> impl Iterator<Item = &Exception> {
        self.lasting().map(|(_, entry)| &entry.exception)
    }

    /// What it leaves open, as far as is known: with those that are being closed, without those that
    /// are being opened.
    pub fn held(&self) -> impl Iterator<Item = (u32, &Entry)> {
        let held = |entry: &&Entry| entry.phase != Phase::Opening;
        self.entries.iter().map(|(&id, entry)| (id, entry)).filter(move |(_, it)| held(it))
    }

    /// The numbers of those that are to be closed.
    pub fn closing(&self) -> Vec<u32> {
        let closing = self.entries.iter().filter(|(_, entry)| entry.phase == Phase::Closing);
        closing.map(|(&id, _)| id).collect()
    }

    /// Whether none is open, and none about to be opened or closed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// They are closed.
    pub fn closed(&mut self, ids: &[u32]) {
        self.entries.retain(|id, _| !ids.contains(id));
    }

    fn lasting(&self) -> impl Iterator<Item = (u32, &Entry)> {
        let lasting = |entry: &&Entry| entry.phase != Phase::Closing;
        self.entries.iter().map(|(&id, entry)| (id, entry)).filter(move |(_, it)| lasting(it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn ntp(last: u8) -> Exception {
        Exception::Ntp([192, 0, 2, last].into())
    }

    fn wanted(book: &Book) -> Vec<Exception> {
        book.wanted().cloned().collect()
    }

    fn held(book: &Book) -> Vec<u32> {
        book.held().map(|(id, _)| id).collect()
    }

    #[test]
    fn each_ends_at_its_own_time() {
        let mut book = Book::default();
        assert_eq!((book.add(ntp(1), at(20)), book.add(ntp(2), at(10))), (Some(1), Some(2)));
        assert_eq!((wanted(&book), held(&book)), (vec![ntp(1), ntp(2)], vec![]));
        book.opened(1);
        book.opened(2);
        assert_eq!((held(&book), book.deadline()), (vec![1, 2], Some(at(10))));
        assert_eq!((book.due(at(9)), book.due(at(10))), (vec![], vec![2]));
        assert_eq!(book.end(2).map(|entry| entry.exception.clone()), Some(ntp(2)));
        // To be closed, but the kernel has it still.
        assert_eq!((wanted(&book), held(&book)), (vec![ntp(1)], vec![1, 2]));
        assert_eq!((book.deadline(), book.due(at(10))), (Some(at(20)), vec![]));
        book.closed(&book.closing());
        assert_eq!((held(&book), book.all()), (vec![1], vec![1]));
        assert_eq!(book.due(at(1000)), [1]);
    }

    #[test]
    fn what_is_ended_does_not_come_back() {
        let mut book = Book::default();
        book.add(ntp(1), at(10));
        assert!(book.end(1).is_some());
        assert!(book.end(1).is_none());
        // What was asked for before is done after.
        book.opened(1);
        assert_eq!((wanted(&book), book.closing()), (vec![], vec![1]));
        book.closed(&[1]);
        assert!(book.end(1).is_none());
        assert_eq!(book.add(ntp(1), at(10)), Some(2), "a number comes again");
        book.failed(2);
        assert_eq!((wanted(&book), book.deadline()), (vec![], None));
    }

    #[test]
    fn there_is_an_end_to_them() {
        let mut book = Book::default();
        for _ in 0..MOST {
            assert!(book.add(ntp(1), at(10)).is_some());
        }
        assert_eq!(book.add(ntp(1), at(10)), None);
    }
}
