//! A datagram each millisecond through the tunnel to the Internet and back, and when each came.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use killswitch::lab::addresses::{INTERNET_V4, SERVER1_V4, SERVER2_V4};
use killswitch::lab::host::{Stop, Worker};
use killswitch::lab::{Context, Error, Lab, Result};

const PORT: u16 = 9007;
/// Between two datagrams.
const EVERY: Duration = Duration::from_millis(1);
/// How soon a thread notices that it is to stop.
const TICK: Duration = Duration::from_millis(50);
/// For payload to come back at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends until dropped.
pub struct Payload {
    log: Arc<Mutex<Log>>,
    paused: Arc<AtomicBool>,
    _workers: [Worker<Option<()>>; 3],
}

#[derive(Default)]
struct Log {
    /// When each was sent; a datagram bears its place here.
    sent: Vec<Instant>,
    replies: Vec<Reply>,
}

#[derive(Clone, Copy)]
struct Reply {
    at: Instant,
    place: usize,
    /// Whose address the Internet saw.
    through: Ipv4Addr,
}

impl Payload {
    pub fn start(lab: &Lab) -> Result<Self> {
        let log = Arc::new(Mutex::new(Log::default()));
        let paused = Arc::new(AtomicBool::new(false));
        let answering =
            lab.internet.run(|| UdpSocket::bind((INTERNET_V4, PORT)))?.during("bind")?;
        let sending = lab.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        let sending = Arc::new(sending.during("bind")?);
        for socket in [&answering, &*sending] {
            socket.set_read_timeout(Some(TICK)).during("timeout")?;
        }
        let receiving = Arc::clone(&sending);
        let (theirs, ours, pause) = (Arc::clone(&log), Arc::clone(&log), Arc::clone(&paused));
        let _workers = [
            lab.internet.spawn("answers", move |stop| answer(&answering, &stop))?,
            lab.client.spawn("receives", move |stop| receive(&receiving, &theirs, &stop))?,
            lab.client.spawn("sends", move |stop| send(&sending, &ours, &pause, &stop))?,
        ];
        Ok(Payload { log, paused, _workers })
    }

    /// Sends nothing from now on.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// When the first came back after `begin`, through this server or any.
    pub fn first(&self, begin: Instant, through: Option<Ipv4Addr>) -> Result<Instant> {
        let suits = |it: &&Reply| {
            it.at > begin && through.map_or(is_server(it.through), |server| server == it.through)
        };
        while begin.elapsed() < PATIENCE {
            if let Some(reply) = lock(&self.log).replies.iter().find(suits) {
                return Ok(reply.at);
            }
            sleep(Duration::from_millis(2));
        }
        Err(Error::new(format!("no payload came within {} s", PATIENCE.as_secs())))
    }

    /// When the last came through this server.
    pub fn last_before(&self, end: Instant, through: Ipv4Addr) -> Option<Instant> {
        let log = lock(&self.log);
        let suits = |it: &&Reply| it.at < end && it.through == through;
        log.replies.iter().rev().find(suits).map(|it| it.at)
    }

    /// When the last came through any other server.
    pub fn last_other(&self, end: Instant, than: Ipv4Addr) -> Option<Instant> {
        let other = if than == SERVER1_V4 { SERVER2_V4 } else { SERVER1_V4 };
        self.last_before(end, other)
    }

    /// Of the next while.
    pub fn round_trips(&self, time: Duration) -> Vec<Duration> {
        let begin = Instant::now();
        sleep(time);
        let log = lock(&self.log);
        let of_now = log.replies.iter().filter(|it| it.at > begin && is_server(it.through));
        of_now.map(|it| it.at.saturating_duration_since(log.sent[it.place])).collect()
    }

    /// How many were sent in a while, and how many of them did not come back through a server.
    pub fn lost(&self, begin: Instant, end: Instant) -> (usize, usize) {
        let log = lock(&self.log);
        let meant = |place: usize| (begin..end).contains(&log.sent[place]);
        let sent = (0..log.sent.len()).filter(|&place| meant(place)).count();
        let back = log.replies.iter().filter(|it| meant(it.place) && is_server(it.through));
        (sent, sent.saturating_sub(back.count()))
    }

    /// Forgets what was.
    pub fn forget(&self) {
        // The places of what is still on its way stay right.
        let mut log = lock(&self.log);
        log.replies.clear();
    }
}

fn is_server(address: Ipv4Addr) -> bool {
    [SERVER1_V4, SERVER2_V4].contains(&address)
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &UdpSocket, log: &Mutex<Log>, paused: &AtomicBool, stop: &Stop) {
    let mut next = Instant::now();
    while !stop.requested() {
        if !paused.load(Ordering::Relaxed) {
            let mut log = lock(log);
            let place = log.sent.len() as u64;
            log.sent.push(Instant::now());
            drop(log);
            // Without a way out there is an error, and the next may do better.
            let _ = socket.send_to(&place.to_ne_bytes(), (INTERNET_V4, PORT));
        }
        next = (next + EVERY).max(Instant::now());
        sleep(next.saturating_duration_since(Instant::now()).max(EVERY / 2));
    }
}

fn receive(socket: &UdpSocket, log: &Mutex<Log>, stop: &Stop) {
    let mut buffer = [0; 64];
    while !stop.requested() {
        let Ok(12) = socket.recv(&mut buffer) else { continue };
        let at = Instant::now();
        let place = u64::from_ne_bytes(std::array::from_fn(|at| buffer[at])) as usize;
        let through = Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|at| buffer[8 + at]));
        let mut log = lock(log);
        if place < log.sent.len() {
            log.replies.push(Reply { at, place, through });
        }
    }
}

/// Each comes back with the address that it came from.
fn answer(socket: &UdpSocket, stop: &Stop) {
    let mut buffer = [0; 64];
    while !stop.requested() {
        let Ok((8, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) else { continue };
        buffer[8..12].copy_from_slice(&from.ip().octets());
        let _ = socket.send_to(&buffer[..12], SocketAddrV4::new(*from.ip(), from.port()));
    }
}
