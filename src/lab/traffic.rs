//! Senders in the client: everything that programs do to reach the Internet, at a steady rate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::addresses::*;
use super::error::Result;
use super::host::{Stop, Worker};
use super::topology::Lab;

mod flood;
mod senders;

pub use flood::{Flood, Flooded};
use senders::{Datagrams, Echoes, Frames, OldConnection, Sender, Streams};

/// How long the pause between two bursts is.
const TICK: Duration = Duration::from_millis(10);

/// What became of the sending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets or connections tried.
    pub attempts: u64,
    /// Refused by the kernel at once.
    pub errors: u64,
    /// Answered.
    pub replies: u64,
}

impl Tally {
    /// What came after an earlier tally.
    pub fn since(self, earlier: Tally) -> Tally {
        Tally {
            attempts: self.attempts.saturating_sub(earlier.attempts),
            errors: self.errors.saturating_sub(earlier.errors),
            replies: self.replies.saturating_sub(earlier.replies),
        }
    }
}

/// Tallies by kind of sender.
pub type Tallies = BTreeMap<&'static str, Tally>;

/// Senders of every kind, sending until dropped: TCP, UDP, DNS, ICMP and whole frames, to IPv4 and
/// IPv6, as routed and bound to the physical link, with fresh sockets and with sockets that were
/// there before the lock (if started before it).
pub struct Senders {
    tallies: Arc<Mutex<Tallies>>,
    _worker: Worker<Option<()>>,
}

impl Senders {
    /// Opens what must be open before the lock, and starts to send about `rate` packets a second.
    ///
    /// # Errors
    /// Those of sockets; if the Internet cannot be reached: start it before the lock.
    pub fn start(lab: &Lab, rate: u32) -> Result<Self> {
        let old_connections = lab.client.run(old_connections)??;
        Self::with(lab, rate, old_connections)
    }

    /// As [`Senders::start`], but without connections from before: for a client that is locked.
    ///
    /// # Errors
    /// Those of sockets.
    pub fn start_locked(lab: &Lab, rate: u32) -> Result<Self> {
        Self::with(lab, rate, Vec::new())
    }

    fn with(lab: &Lab, rate: u32, mut senders: Vec<NamedSender>) -> Result<Self> {
        senders.extend(lab.client.run(all_senders)??);
        senders.push(("packet socket", Box::new(Frames::open(&lab.client)?)));
        let tallies = Arc::new(Mutex::new(Tallies::new()));
        let theirs = Arc::clone(&tallies);
        let worker =
            lab.client.spawn("senders", move |stop| send(senders, rate, &theirs, &stop))?;
        Ok(Senders { tallies, _worker: worker })
    }

    /// Tallies by kind so far.
    pub fn tallies(&self) -> Tallies {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tally of all kinds together so far.
    pub fn total(&self) -> Tally {
        self.tallies().values().fold(Tally::default(), |sum, one| Tally {
            attempts: sum.attempts + one.attempts,
            errors: sum.errors + one.errors,
            replies: sum.replies + one.replies,
        })
    }
}

type NamedSender = (&'static str, Box<dyn Sender>);

fn old_connections() -> Result<Vec<NamedSender>> {
    Ok(vec![
        ("tcp4 old", Box::new(OldConnection::open((INTERNET_V4, 443).into())?)),
        ("tcp6 old", Box::new(OldConnection::open((INTERNET_V6, 443).into())?)),
        ("udp4 old", Box::new(Datagrams::connected((INTERNET_V4, 443).into())?)),
        ("udp6 old", Box::new(Datagrams::connected((INTERNET_V6, 443).into())?)),
    ])
}

fn all_senders() -> Result<Vec<NamedSender>> {
    let [_, v4, other_v4, _, _, v6, other_v6] = INTERNET;
    let at = |address: IpAddr, port: u16| (address, port).into();
    let bound = Some(CLIENT_LINK);
    Ok(vec![
        ("dns4", Box::new(Datagrams::fresh(at(v4, 53), None))),
        ("dns6", Box::new(Datagrams::fresh(at(v6, 53), None))),
        ("udp4", Box::new(Datagrams::fresh(at(other_v4, 443), None))),
        ("udp6", Box::new(Datagrams::fresh(at(other_v6, 443), None))),
        ("stun4", Box::new(Datagrams::fresh(at(v4, 3478), None))),
        ("ntp4", Box::new(Datagrams::fresh(at(other_v4, 123), None))),
        ("udp4 bound", Box::new(Datagrams::fresh(at(other_v4, 443), bound))),
        ("udp6 bound", Box::new(Datagrams::fresh(at(other_v6, 443), bound))),
        ("dns4 of the router", Box::new(Datagrams::fresh(at(ROUTER_V4.into(), 53), bound))),
        ("clear to a server", Box::new(Datagrams::fresh(at(SERVER1_V4.into(), 51820), bound))),
        ("tcp4", Box::new(Streams::new(at(v4, 443), None))),
        ("tcp6", Box::new(Streams::new(at(v6, 443), None))),
        ("tcp4 bound", Box::new(Streams::new(at(v4, 80), bound))),
        ("tcp6 bound", Box::new(Streams::new(at(v6, 80), bound))),
        ("icmp4", Box::new(Echoes::open(v4, None)?)),
        ("icmp6", Box::new(Echoes::open(v6, None)?)),
        ("icmp4 bound", Box::new(Echoes::open(other_v4, bound)?)),
        ("icmp6 bound", Box::new(Echoes::open(other_v6, bound)?)),
    ])
}

fn send(mut senders: Vec<NamedSender>, rate: u32, tallies: &Mutex<Tallies>, stop: &Stop) {
    let start = Instant::now();
    let mut sent: u64 = 0;
    let mut next = 0;
    while !stop.requested() {
        // After a stall no more than a tenth of a second is made up for.
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        let burst = due.saturating_sub(sent).min(u64::from(rate / 10).max(1));
        sent = due;
        let mut shots = Tallies::new();
        for _ in 0..burst {
            next = (next + 1) % senders.len();
            let (name, sender) = &mut senders[next];
            let tally = shots.entry(*name).or_default();
            tally.attempts += 1;
            tally.errors += u64::from(sender.shoot().is_err());
        }
        for (name, sender) in &mut senders {
            shots.entry(*name).or_default().replies += sender.replies();
        }
        add(tallies, &shots);
        std::thread::sleep(TICK);
    }
}

fn add(tallies: &Mutex<Tallies>, shots: &Tallies) {
    let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, shot) in shots {
        let tally = tallies.entry(*name).or_default();
        tally.attempts += shot.attempts;
        tally.errors += shot.errors;
        tally.replies += shot.replies;
    }
}
