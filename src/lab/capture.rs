//! Watches the client's wires from their far ends and judges every frame the client sends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::addresses::WIRE;
use super::decoder::{Expectation, Verdict, classify};
use super::error::{Context, Error, Result};
use super::host::{Stop, Worker};
use super::link::PacketSocket;
use super::topology::Lab;

/// How a capture file with microseconds begins (draft-ietf-opsawg-pcap).
const MAGIC: u32 = 0xa1b2_c3d4;
/// So many leaked frames are kept whole.
const KEPT: usize = 1000;
/// So many classes are told apart.
const CLASSES: usize = 1000;
/// Holds some hundred thousand small frames.
const BUFFER: usize = 256 << 20;
/// Silence for this long after the end means that all was read; so does a frame that came later.
const SILENCE: Duration = Duration::from_millis(20);

/// A running capture of what the client sends.
pub struct Capture {
    shared: Arc<Mutex<Report>>,
    worker: Worker<Option<Result<()>>>,
    /// For links that take the tunnel's name.
    trap: Worker<Option<Result<()>>>,
}

/// A frame that the client sent.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When the kernel received it.
    pub at: SystemTime,
    /// All of it, from the destination's hardware address on.
    pub bytes: Vec<u8>,
    /// What is wrong with it.
    pub leak: String,
}

/// What the client sent.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Frames that may leave, by reason.
    pub allowed: BTreeMap<String, u64>,
    /// Frames that may not, by kind.
    pub leaked: BTreeMap<String, u64>,
    /// The first of the latter.
    pub frames: Vec<Frame>,
    /// Frames that came too fast to be read: they were neither judged nor counted above.
    pub lost: u64,
}

impl Report {
    /// How many frames may leave.
    pub fn allowed_total(&self) -> u64 {
        self.allowed.values().sum()
    }

    /// How many frames may not.
    pub fn leaked_total(&self) -> u64 {
        self.leaked.values().sum()
    }

    /// The `most` most frequent leaks in words; empty if there is none.
    pub fn summary(&self, most: usize) -> String {
        let mut classes: Vec<_> = self.leaked.iter().collect();
        classes.sort_by(|a, b| b.1.cmp(a.1));
        let words = classes.iter().take(most).map(|(class, count)| format!("{count} x {class}"));
        words.collect::<Vec<_>>().join("; ")
    }

    fn add(&mut self, at: SystemTime, frame: &[u8], verdict: Verdict) {
        match verdict {
            Verdict::Allowed(reason) => count(&mut self.allowed, reason.into()),
            Verdict::Leaked(leak) => {
                if self.frames.len() < KEPT {
                    let bytes = frame.to_vec();
                    self.frames.push(Frame { at, bytes, leak: leak.clone() });
                }
                count(&mut self.leaked, leak);
            }
        }
    }
}

/// Judges the frames of a capture file from byte `from` on (0: all), as far as they are whole; with
/// the place to go on from.
///
/// # Errors
/// Those of files; a file that is no such capture.
pub fn judge_file(file: &Path, from: usize, expected: &Expectation) -> Result<(Report, usize)> {
    /// Of the file, and of each frame.
    const HEADS: (usize, usize) = (24, 16);
    let bytes = std::fs::read(file).during(file.display())?;
    let mut report = Report::default();
    if bytes.len() < HEADS.0 {
        return Ok((report, 0));
    }
    if bytes[..4] != MAGIC.to_ne_bytes() {
        return Err(Error::new(format!("{}: not a capture of this machine", file.display())));
    }
    let mut at = from.max(HEADS.0);
    while let Some(head) = bytes.get(at..at + HEADS.1) {
        let word = |n: usize| u32::from_ne_bytes([head[n], head[n + 1], head[n + 2], head[n + 3]]);
        let length = usize::try_from(word(8)).during("a frame's length")?;
        let Some(frame) = bytes.get(at + HEADS.1..at + HEADS.1 + length) else { break };
        let since = Duration::from_secs(word(0).into()) + Duration::from_micros(word(4).into());
        report.add(UNIX_EPOCH + since, frame, classify(frame, expected));
        at += HEADS.1 + length;
    }
    Ok((report, at))
}

impl Capture {
    /// Starts to watch. Every frame is judged as it comes, by `expectation`.
    ///
    /// # Errors
    /// Those of packet sockets.
    pub fn start(lab: &Lab, expectation: Expectation) -> Result<Self> {
        Self::watch(lab, expectation, None)
    }

    /// As [`Capture::start`], and writes every frame of the client to a pcap file.
    ///
    /// # Errors
    /// Those of packet sockets, and of the file.
    pub fn start_with_pcap(lab: &Lab, expectation: Expectation, file: &Path) -> Result<Self> {
        Self::watch(lab, expectation, Some(Pcap::create(file)?))
    }

    fn watch(lab: &Lab, expectation: Expectation, mut pcap: Option<Pcap>) -> Result<Self> {
        let wire = PacketSocket::open_lasting(&lab.router, WIRE)?;
        let traps = PacketSocket::open_all(&lab.trap)?;
        for socket in [&wire, &traps] {
            socket.reserve(BUFFER)?;
            socket.set_timeout(SILENCE)?;
        }
        let shared = Arc::new(Mutex::new(Report::default()));
        let (theirs, expected) = (Arc::clone(&shared), expectation.clone());
        let worker = lab.router.spawn("capture", move |stop| {
            record(&wire, &expected, pcap.as_mut(), &theirs, &stop)
        })?;
        let theirs = Arc::clone(&shared);
        let trap = lab.trap.spawn("capture-trap", move |stop| {
            record(&traps, &expectation, None, &theirs, &stop)
        })?;
        Ok(Capture { shared, worker, trap })
    }

    /// What was seen so far. Frames still on their way are missing.
    pub fn report(&self) -> Report {
        lock(&self.shared).clone()
    }

    /// What was seen since the last call, and forgets it. Frames still on their way are missing:
    /// let the client be silent before, or accept that a frame is seen in the next period.
    pub fn take(&self) -> Report {
        std::mem::take(&mut *lock(&self.shared))
    }

    /// Ends the capture once the wire's backlog is read.
    ///
    /// # Errors
    /// If frames could not be received or written: the report would be incomplete.
    pub fn stop(self) -> Result<Report> {
        let Capture { shared, worker, trap } = self;
        trap.request_stop();
        for worker in [worker, trap] {
            worker.stop()?.ok_or_else(|| Error::new("the capture did not start"))??;
        }
        Ok(lock(&shared).clone())
    }
}

fn record(
    socket: &PacketSocket,
    expectation: &Expectation,
    mut pcap: Option<&mut Pcap>,
    report: &Mutex<Report>,
    stop: &Stop,
) -> Result<()> {
    let mut buffer = vec![0u8; 65536 + 64];
    let mut lost_before = 0;
    let mut end = None;
    loop {
        if stop.requested() && end.is_none() {
            end = Some(SystemTime::now());
        }
        let Some(received) = socket.receive(&mut buffer)? else {
            if end.is_some() {
                break;
            }
            continue;
        };
        if end.is_some_and(|end| received.at > end) {
            break;
        }
        let new_losses = received.lost.saturating_sub(lost_before);
        lost_before = lost_before.max(received.lost);
        let frame = &buffer[..received.length];
        let mut report = lock(report);
        report.lost += u64::from(new_losses);
        if received.outgoing {
            continue;
        }
        report.add(received.at, frame, classify(frame, expectation));
        drop(report);
        if let Some(pcap) = pcap.as_mut() {
            pcap.write(received.at, frame)?;
        }
    }
    pcap.map_or(Ok(()), Pcap::finish)
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(classes: &mut BTreeMap<String, u64>, class: String) {
    if classes.len() >= CLASSES && !classes.contains_key(&class) {
        *classes.entry("others".into()).or_default() += 1;
    } else {
        *classes.entry(class).or_default() += 1;
    }
}

/// A capture file as in draft-ietf-opsawg-pcap, Ethernet, microseconds.
struct Pcap(BufWriter<File>);

impl Pcap {
    fn create(path: &Path) -> Result<Self> {
        let mut file = BufWriter::new(File::create(path).during(path.display())?);
        let words: [u32; 6] = [MAGIC, 0x0004_0002, 0, 0, 262_144, 1];
        for word in words {
            file.write_all(&word.to_ne_bytes()).during(path.display())?;
        }
        Ok(Pcap(file))
    }

    fn write(&mut self, at: SystemTime, frame: &[u8]) -> Result<()> {
        let now = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // The format's seconds end in 2106.
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        for word in [seconds, now.subsec_micros(), length, length] {
            self.0.write_all(&word.to_ne_bytes()).during("writing the capture")?;
        }
        self.0.write_all(frame).during("writing the capture")
    }

    fn finish(&mut self) -> Result<()> {
        self.0.flush().during("writing the capture")
    }
}
