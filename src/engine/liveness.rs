//! Whether the server behind a tunnel still answers, told by the peer's counters.
//!
//! Nothing runs while nothing is sent: [`Effect::WatchTraffic`](super::Effect::WatchTraffic) wakes
//! this up. Then the counters are read until they stand still. What is sent and not answered within
//! [`SILENCE`] is asked after with a probe. No answer to it: a server that has answered a probe
//! before is dead; of any other it is only known that it is silent, and a new handshake decides.
//! If that passes, and then not even one of WireGuard's own keepalives comes, the way there lets no
//! data through, e.g. by a second router that is gone: the endpoint is as good as dead. (One that drops
//! large packets only lets probes and keepalives through, and is not noticed.)

use std::time::Duration;

use super::{Reading, Time};

/// Between two readings while something moves.
const POLL: Duration = Duration::from_millis(250);
/// Sent, and no answer for this long: probe.
const SILENCE: Duration = Duration::from_millis(500);
/// So long may one-way traffic stay unanswered. WireGuard's KEEPALIVE_TIMEOUT (whitepaper, 6.1): a
/// living peer that is sent data and has none to return sends a keepalive after 10 s; the rest is for
/// slow timers and the way back.
const KEEPALIVE_OVERDUE: Duration = Duration::from_secs(12);
/// How long a server that answers probes may take for it.
const ANSWER: Duration = Duration::from_millis(750);
/// How long others may: a handshake follows, then the server's other endpoints, and all of it shall
/// end within 3 s.
const ANSWER_OF_SILENT: Duration = Duration::from_millis(500);
/// Nothing moved for this long: no more readings.
const QUIET: Duration = Duration::from_secs(2);
/// Bytes of a keepalive: a data message with nothing in it (whitepaper, 5.4.6).
const KEEPALIVE: u64 = 32;
/// Bytes of the two messages of a handshake (whitepaper, 5.4.2, 5.4.3).
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;
/// Bytes that two probes of ours may take on the wire; more is somebody's traffic.
const OWN: u64 = 256;

/// What to do about a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing now.
    Fine,
    /// Send a probe.
    Probe,
    /// Watch for traffic; no more timers.
    Quiet,
    /// Only a handshake can tell whether the server lives.
    Doubt {
        /// Whether the doubt is for silence alone, not for a new way to the server.
        silent: bool,
    },
    /// The server is gone.
    Dead,
}

/// Why a probe was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// To learn whether this server answers probes.
    Learn,
    /// What was sent stays unanswered.
    Silence,
    /// The way to the server changed.
    Challenge,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    why: Why,
    /// When the probe was sent; `None`: it is still on its way there.
    since: Option<Time>,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    received: u64,
    sent: u64,
    at: Time,
}

/// What is known of the server's life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Liveness {
    last: Option<Counters>,
    /// When a counter last moved.
    moved: Time,
    /// Since when something sent awaits an answer.
    unanswered: Option<Time>,
    question: Option<Question>,
    /// Bytes sent when the question was put.
    sent_before: u64,
    /// Whether data came since the handshake, be it a keepalive.
    heard: bool,
    /// Whether the counters include handshakes: boringtun's do not, and keepalives neither (0.7.1,
    /// `validate_decapsulated_packet`), so that nothing can be told from a keepalive that stays away.
    counts: bool,
    /// Whether it ever answered a probe.
    answers: bool,
    /// It was silent and yet alive: take its silence for one-way traffic, until its keepalive is
    /// overdue.
    patient: bool,
    /// Readings in a row that brought an answer.
    streak: u8,
    /// What our own probe sent at the handshake may still show in the next reading.
    fresh: bool,
    /// Traffic is watched: no timer.
    watched: bool,
    read_at: Option<Time>,
}

impl Liveness {
    /// Of a new session, or of one that was found; the counters as last read.
    pub(super) fn new(reading: Reading, now: Time) -> Self {
        Self {
            last: Some(Counters::of(&reading, now)),
            moved: now,
            unanswered: None,
            question: None,
            sent_before: reading.sent,
            heard: false,
            counts: reading.received > 0,
            answers: false,
            patient: false,
            streak: 0,
            fresh: true,
            watched: false,
            read_at: None,
        }
    }

    /// A server that is known from an earlier session.
    pub(super) fn knowing(mut self, answers: bool, patient: bool) -> Self {
        (self.answers, self.patient) = (answers, patient);
        self
    }

    /// Whether this server answered a probe once.
    pub(super) fn answers(&self) -> bool {
        self.answers
    }

    /// Whether data came since the handshake, be it a keepalive.
    pub(super) fn was_heard(&self) -> bool {
        self.heard
    }

    /// A probe is sent to learn whether it is answered.
    pub(super) fn learn(&mut self) {
        self.ask(Why::Learn);
    }

    /// The way to the server changed; a reading, then a probe are sent. Only what is received
    /// after that reading counts as an answer. `false`: such a probe is about to be sent anyway.
    pub(super) fn challenge(&mut self, now: Time) -> bool {
        if matches!(self.question, Some(Question { why: Why::Challenge, since: None })) {
            return false;
        }
        self.wake(now);
        self.unanswered = None;
        self.ask(Why::Challenge);
        true
    }

    /// Something was sent into the tunnel. Whether to read at once.
    pub(super) fn sent(&mut self, now: Time) -> bool {
        if !self.watched {
            return false;
        }
        self.wake(now);
        self.unanswered = Some(now);
        true
    }

    /// Traffic cannot be watched: read on.
    pub(super) fn poll_instead(&mut self, now: Time) {
        self.watched = false;
        self.moved = now;
    }

    /// No probe can be sent: silence says nothing.
    pub(super) fn probe_failed(&mut self) {
        self.answers = false;
    }

    /// The probe has left.
    pub(super) fn probe_sent(&mut self, now: Time) {
        if let Some(question) = &mut self.question {
            question.since.get_or_insert(now);
        }
    }

    /// A reading is taken: no timer until it is there.
    pub(super) fn take_due(&mut self, now: Time) -> bool {
        let due = self.read_at.is_some_and(|at| at <= now);
        if due {
            self.read_at = None;
        }
        due
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.read_at
    }

    /// No reading is under way: sets the time of the next, at least `least` from now.
    pub(super) fn schedule(&mut self, least: Duration, now: Time) {
        if self.watched || self.read_at.is_some() {
            return;
        }
        let decisive = match self.question {
            Some(Question { why, since: Some(since) }) => Some(since + self.patience_of(why)),
            _ => self.unanswered.map(|since| since + self.silence()),
        };
        let poll = now + POLL;
        let soonest = now + least.max(Duration::from_millis(10));
        self.read_at = Some(decisive.map_or(poll, |at| at.min(poll)).max(soonest));
    }

    /// Takes a reading of the same peer.
    pub(super) fn reading(&mut self, reading: &Reading, now: Time) -> Verdict {
        let counters = Counters::of(reading, now);
        let last = self.last.replace(counters).filter(|last| !counters.is_reset(last));
        let Some(last) = last else {
            self.sent_before = reading.sent;
            return if self.watched { Verdict::Fine } else { self.verdict(now) };
        };
        let (received, sent) = (counters.received - last.received, counters.sent - last.sent);
        if received > 0 || sent > 0 {
            self.moved = now;
        }
        if received > 0 {
            self.answered(received, counters.sent);
        } else {
            self.streak = 0;
            if sent > self.own() {
                self.unanswered.get_or_insert(last.at);
                self.watched = false;
            }
        }
        self.fresh = false;
        if self.watched { Verdict::Fine } else { self.verdict(now) }
    }

    /// What can be told from nothing but time and the last reading.
    fn verdict(&mut self, now: Time) -> Verdict {
        let over = |since: Time, patience: Duration| now >= since + patience;
        match self.question {
            Some(Question { why, since: Some(since) }) if over(since, self.patience_of(why)) => {
                self.question = None;
                match why {
                    Why::Learn => Verdict::Fine,
                    Why::Challenge => Verdict::Doubt { silent: false },
                    Why::Silence if self.answers => Verdict::Dead,
                    Why::Silence if self.patient && self.counts && !self.heard => Verdict::Dead,
                    Why::Silence => Verdict::Doubt { silent: true },
                }
            }
            Some(Question { why: Why::Silence | Why::Challenge, .. }) => Verdict::Fine,
            _ if self.unanswered.is_some_and(|since| over(since, self.silence())) => {
                self.ask(Why::Silence);
                Verdict::Probe
            }
            None if self.unanswered.is_none() && over(self.moved, QUIET) => {
                self.watched = true;
                Verdict::Quiet
            }
            _ => Verdict::Fine,
        }
    }

    /// Something came. It is taken for the probe's answer if it is more than a keepalive and, for a
    /// probe sent out of curiosity, if nothing else was sent that it could answer.
    fn answered(&mut self, received: u64, sent: u64) {
        if let Some(Question { why, since: Some(_) }) = self.question {
            let alone = sent.saturating_sub(self.sent_before) <= OWN;
            self.answers |= received > KEEPALIVE && (alone || why == Why::Silence);
        }
        (self.question, self.unanswered) = (None, None);
        // But for a new handshake, which WireGuard begins by itself after 15 s. Data is padded to 16 bytes.
        self.heard |= !matches!(received, RESPONSE | INITIATION);
        self.streak = self.streak.saturating_add(1);
        if self.streak >= 2 {
            self.patient = false;
        }
    }

    fn wake(&mut self, now: Time) {
        (self.last, self.moved, self.watched, self.read_at) = (None, now, false, None);
    }

    fn ask(&mut self, why: Why) {
        self.question = Some(Question { why, since: None });
        self.sent_before = self.last.map_or(0, |last| last.sent);
    }

    /// Bytes that may be sent without somebody's traffic among them.
    fn own(&self) -> u64 {
        if self.fresh || self.question.is_some() { OWN } else { KEEPALIVE }
    }

    fn silence(&self) -> Duration {
        if self.patient { KEEPALIVE_OVERDUE } else { SILENCE }
    }

    fn patience_of(&self, why: Why) -> Duration {
        match why {
            Why::Silence if !self.answers => ANSWER_OF_SILENT,
            _ => ANSWER,
        }
    }
}

impl Counters {
    fn of(reading: &Reading, at: Time) -> Self {
        Self { received: reading.received, sent: reading.sent, at }
    }

    /// Whether the peer was made anew since.
    fn is_reset(&self, last: &Self) -> bool {
        self.received < last.received || self.sent < last.sent
    }
}
