//! The daemon's way to the journal, in two threads: one takes what happened into memory and never waits
//! for a disk; the other one folds it in, and may hang there. The daemon's loop waits for neither.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::journal::{self, Folded};
use super::limit::Limit;
use super::{Places, Record, What, spool};
use crate::daemon;

/// Entries that wait for the thread; more are lost, and counted.
const BACKLOG: usize = 1024;
/// Before what could not be folded in is tried again: at boot /var comes within seconds, a full disk
/// may stay so for days.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);
/// For /var to be mounted, before its absence is told.
const BOOTS: Duration = Duration::from_secs(120);

/// Takes what happened.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    /// `None`: there is no thread.
    queue: Option<SyncSender<Task>>,
    lost: Arc<AtomicU64>,
}

/// Why evidence is not kept as it should be.
pub(crate) type Trouble = watch::Receiver<Option<String>>;

#[derive(Debug)]
enum Task {
    Record(Box<Record>),
    /// Answered once all that came before is in the journal, or waits for it in memory.
    End(SyncSender<()>),
}

/// Dropped once what came before is folded in, which tells who waits for it.
type Ends = Vec<SyncSender<()>>;

impl Recorder {
    /// Starts the thread; the daemon lives without. What is recorded first is in memory on return: a
    /// daemon that is ready has said that it began, even if it is killed the next moment.
    pub(crate) fn start(places: Places, first: What) -> (Self, Trouble) {
        let (queue, tasks) = sync_channel(BACKLOG);
        let lost = Arc::new(AtomicU64::new(0));
        let (tell, trouble) = watch::channel(None);
        let (wake, wakes) = sync_channel(1);
        let memory = Memory { places, lost: lost.clone() };
        memory.append(&Record::now(first));
        let _ = wake.try_send(Ends::new());
        let folder = Folder { memory: memory.clone(), begin: Instant::now(), tell: tell.clone() };
        let thread = Thread { memory, limit: Limit::default(), wake };
        let started = start("evidence", move || thread.run(&tasks))
            .and_then(|_| start("evidence-disk", move || folder.run(&wakes)));
        let queue = match started {
            Ok(_) => Some(queue),
            Err(error) => {
                tell.send_replace(Some(format!("evidence is not kept: {error}")));
                None
            }
        };
        (Recorder { queue, lost }, trouble)
    }

    /// Takes an entry, at once.
    pub(crate) fn record(&self, what: What) {
        let task = Task::Record(Box::new(Record::now(what)));
        if let Some(queue) = &self.queue
            && queue.try_send(task).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was taken is in the journal, but not for long: in memory it is then.
    pub(crate) fn finish(&self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let (done, wait) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.try_send(Task::End(done)).is_ok()
        {
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(512 << 10);
    thread.spawn(work).map(drop)
}

/// What waits there outlives this process.
#[derive(Clone)]
struct Memory {
    places: Places,
    lost: Arc<AtomicU64>,
}

impl Memory {
    fn append(&self, record: &Record) {
        self.tell_lost();
        if let Err(error) = spool::append(&self.places, &record.body()) {
            tracing::debug!(%error, "an entry of the evidence is lost");
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// In the journal, in the place of what is missing.
    fn tell_lost(&self) {
        let entries = self.lost.swap(0, Ordering::Relaxed);
        let lost = Record::now(What::Lost { entries });
        if entries > 0 && spool::append(&self.places, &lost.body()).is_err() {
            self.lost.fetch_add(entries, Ordering::Relaxed);
        }
    }
}

/// Takes what happened into memory.
struct Thread {
    memory: Memory,
    limit: Limit,
    wake: SyncSender<Ends>,
}

impl Thread {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Ok(first) = tasks.recv() {
            let mut ends = Ends::new();
            let waiting = std::iter::from_fn(|| tasks.try_recv().ok()).take(BACKLOG);
            for task in std::iter::once(first).chain(waiting) {
                self.take(task, &mut ends);
            }
            // In memory, all of it. One that waits already is enough, but for the last.
            let _ = match ends.is_empty() {
                true => self.wake.try_send(ends).map_err(drop),
                false => self.wake.send(ends).map_err(drop),
            };
        }
    }

    fn take(&mut self, task: Task, ends: &mut Ends) {
        match task {
            Task::End(done) => {
                // What counts them ends with the daemon.
                if let Some(entries) = self.limit.left_out() {
                    self.memory.append(&Record::now(What::LeftOut { entries }));
                }
                ends.push(done);
            }
            Task::Record(record) => {
                let (takes, left_out) = self.limit.take(&record.what, daemon::now());
                if let Some(entries) = left_out {
                    self.memory.append(&Record::now(What::LeftOut { entries }));
                }
                if takes {
                    self.memory.append(&record);
                }
            }
        }
    }
}

/// Folds in what waits.
struct Folder {
    memory: Memory,
    begin: Instant,
    tell: watch::Sender<Option<String>>,
}

impl Folder {
    fn run(self, wakes: &Receiver<Ends>) {
        let mut pause = None;
        loop {
            let wake = match pause {
                None => wakes.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => wakes.recv_timeout(pause),
            };
            let ends = match wake {
                Ok(ends) => ends,
                Err(RecvTimeoutError::Timeout) => {
                    pause = pause.map(|it| (it * 2).min(LONGEST));
                    Ends::new()
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            pause = self.fold().then(|| pause.unwrap_or(SHORTEST));
            drop(ends);
        }
    }

    /// Whether to try again.
    fn fold(&self) -> bool {
        let Memory { places, lost } = &self.memory;
        self.memory.tell_lost();
        let place = places.journal.display();
        let (trouble, again) = match journal::fold(places, journal::LIMITS) {
            Ok(Folded::Nothing) => (None, false),
            Ok(Folded::To(head, file)) => {
                tracing::info!(
                    EVIDENCE_SEQ = head.seq,
                    EVIDENCE_HASH = head.hash,
                    "evidence ends at {head}"
                );
                let synchronised = file.sync_data().err();
                (synchronised.map(|error| format!("evidence: {place}: {error}")), false)
            }
            Ok(Folded::NotMounted) if self.begin.elapsed() < BOOTS => (None, true),
            Ok(Folded::NotMounted) => {
                let place = places.mounted.display();
                (Some(format!("evidence waits in memory: {place} is not there")), true)
            }
            // A command is at it.
            Err(error) if error.kind() == ErrorKind::TimedOut => (None, true),
            Err(error) => (Some(format!("evidence waits in memory: {place}: {error}")), true),
        };
        // Now that there is room again, they can be told.
        let lost = lost.load(Ordering::Relaxed);
        let again = again || lost > 0;
        let trouble = match (trouble, lost) {
            (None, 0) => None,
            (trouble, 0) => trouble,
            (trouble, _) => {
                let why = trouble.unwrap_or_else(|| "evidence".into());
                Some(format!("{why}; entries are being lost"))
            }
        };
        self.tell.send_if_modified(|told| {
            let differs = *told != trouble;
            *told = trouble;
            differs
        });
        again
    }
}
