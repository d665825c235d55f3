//! Events as fast as the kernel makes them: what is kept does not grow, and the state is right soon
//! after.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Error, Host, Result};
use killswitch::netlink::{Family, Socket, links};
use killswitch::watch::{Observer, Watch};

use crate::told::run;

/// Messages to one datagram.
const BURST: u32 = 128;
/// What may be added to the process' memory, in kB: tables of routes that are listed, mostly.
const MOST_KB: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(600);

const NLM_F_REQUEST: u16 = 1;
const NLM_F_CREATE: u16 = 0x400;

pub fn storm() -> Outcome {
    rage(100_000)
}

pub fn storm_of_a_million_slow() -> Outcome {
    rage(1_000_000)
}

fn rage(events: u64) -> Outcome {
    let host = Host::new("client")?;
    host.ip("link add eth0 type veth peer name far
             link set far up
             link set eth0 up
             address add 192.0.2.2/24 dev eth0
             link add flapper type bridge")?;
    let (made, left) = (AtomicU64::new(0), AtomicU64::new(events));
    let ended = Mutex::new(None);
    let before = memory_kb("VmRSS:")?;
    // The high-water mark starts anew (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").during("clear_refs")?;
    let watched = std::thread::scope(|scope| -> Result<Watched> {
        let watcher = scope.spawn(|| host.run(|| watch(&ended)));
        let makers = [addresses as Maker, routes, flaps];
        let makers = makers.map(|make| {
            let (made, left, host) = (&made, &left, &host);
            scope.spawn(move || host.run(|| burst(make, made, left)))
        });
        let begin = Instant::now();
        // Links come and go among the rest.
        for number in 0..20 {
            let name = format!("storm{number}");
            host.run(|| run(&format!("ip link add {name} type bridge")))??;
            if number % 2 == 0 {
                host.run(|| run(&format!("ip link del {name}")))??;
            }
        }
        for maker in makers {
            maker.join().map_err(|_| Error::new("a storm panicked"))???;
        }
        let took = begin.elapsed();
        *ended.lock().map_err(|_| Error::new("poisoned"))? = Some(Instant::now());
        host.run(|| run("ip route add default via 192.0.2.1"))??;
        let made = made.load(Ordering::Relaxed);
        println!("{made} requests in {took:.1?}");
        watcher.join().map_err(|_| Error::new("the watcher panicked"))??
    })?;
    let grown = memory_kb("VmHWM:")?.saturating_sub(before);
    println!(
        "{} changes told, {} with losses; right {:.1?} after the end; {grown} kB more at most",
        watched.changes, watched.losses, watched.late
    );
    assert!(made.load(Ordering::Relaxed) >= events);
    assert!(grown < MOST_KB, "{grown} kB");
    let names: BTreeSet<String> = host.run(names)??;
    assert_eq!(watched.links, names);
    assert!(names.contains("storm19") && !names.contains("storm18"));
    Ok(())
}

struct Watched {
    changes: u64,
    losses: u64,
    links: BTreeSet<String>,
    late: Duration,
}

/// As the daemon does, until the way out is there that the end of the storm opened. Links are read
/// when they are said to have changed, and only then.
fn watch(ended: &Mutex<Option<Instant>>) -> Result<Watched> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.during("runtime")?.block_on(async {
        let mut watch = Watch::open().during("watch")?;
        let mut observer = Observer::open().during("observer")?;
        let mut it =
            Watched { changes: 0, losses: 0, links: BTreeSet::new(), late: Duration::ZERO };
        let begin = Instant::now();
        loop {
            match observer.observe(None).await {
                Ok(observed) => {
                    if observed.links_changed {
                        it.links = names()?;
                    }
                    if observed.network.v4.is_some() {
                        let ended = ended.lock().map_err(|_| Error::new("poisoned"))?;
                        it.late = ended.map(|it| it.elapsed()).unwrap_or_default();
                        return Ok(it);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).during("observe"),
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::new("the end of the storm was not seen"));
            }
            let change = watch.next().await.during("watch")?;
            it.changes += 1;
            it.losses += u64::from(change.lost);
        }
    })
}

fn names() -> Result<BTreeSet<String>> {
    let socket = Socket::open(Family::Route).during("netlink")?;
    Ok(links(&socket).during("links")?.into_iter().map(|link| link.name).collect())
}

/// Writes one request that makes at least one event; odd numbers undo what the one before did.
type Maker = fn(&mut Vec<u8>, u32);

fn burst(make: Maker, made: &AtomicU64, left: &AtomicU64) -> Result<()> {
    let socket = Socket::open(Family::Route).during("netlink")?;
    let mut bytes = Vec::new();
    (0..BURST).for_each(|number| make(&mut bytes, number));
    let step = u64::from(BURST);
    while left.load(Ordering::Relaxed) > 0 {
        socket.send(&bytes).during("storm")?;
        socket.discard_pending();
        made.fetch_add(step, Ordering::Relaxed);
        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(step))
        });
    }
    Ok(())
}

fn request(bytes: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) {
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
}

/// `ifaddrmsg` and IFA_LOCAL, on loopback.
fn addresses(bytes: &mut Vec<u8>, number: u32) {
    let mut body = vec![2, 32, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 10, 7, 7];
    body.push((number / 2) as u8);
    match number % 2 {
        0 => request(bytes, 20, NLM_F_CREATE, &body),
        _ => request(bytes, 21, 0, &body),
    }
}

/// `rtmsg` and RTA_DST: host routes of table main that refuse.
fn routes(bytes: &mut Vec<u8>, number: u32) {
    let mut body = vec![2, 32, 0, 0, 254, 4, 0, 7, 0, 0, 0, 0, 8, 0, 1, 0, 10, 8, 8];
    body.push((number / 2) as u8);
    match number % 2 {
        0 => request(bytes, 24, NLM_F_CREATE, &body),
        _ => request(bytes, 25, 0, &body),
    }
}

/// `ifinfomsg` and IFLA_IFNAME: a link goes up and down.
fn flaps(bytes: &mut Vec<u8>, number: u32) {
    let up = (number + 1) % 2;
    let mut body = vec![0; 8];
    body.extend(up.to_ne_bytes());
    body.extend(1u32.to_ne_bytes());
    body.extend([12, 0, 3, 0]);
    body.extend(b"flapper\0");
    request(bytes, 16, 0, &body);
}

fn memory_kb(what: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").during("status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|it| it.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Error::new(format!("no {what}")))
}
