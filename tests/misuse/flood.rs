//! More calls at the same time than anybody needs, from callers of every kind.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::harness::Outcome;

use crate::bus;
use crate::callers::{self, Done};
use crate::stage::{Stage, round_trip, round_trips};
use crate::wire::{Wire, bytes, ours, property, to};

/// Connections of those who read what they get, and their calls at the same time on each: a bus lets
/// nobody have more than 128.
const CONNECTIONS: usize = 100;
const CALLS: usize = 100;
/// By which the daemon's memory may differ, in kB, however many calls there were.
const GROWTH: u64 = 64 << 10;

/// Killed when dropped.
struct Caller(Child);

impl Caller {
    fn start(role: &str) -> std::io::Result<Self> {
        callers::command(role).stdout(Stdio::piped()).spawn().map(Caller)
    }

    /// Until it ends.
    fn end(&mut self) -> Outcome {
        let mut said = String::new();
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_string(&mut said)?;
        }
        match self.0.wait()?.success() {
            true => Ok(()),
            false => Err(said.into()),
        }
    }

    fn runs(&mut self) -> std::io::Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn ten_thousand_calls_delay_nobody() -> Outcome {
    /// What a caller may cost another.
    const BOUND: Duration = Duration::from_millis(100);
    /// Once in thousands, a noisy machine may cost more.
    const NOISE: u32 = 10;
    if !callers::can_be_others() {
        return Ok(());
    }
    let mut stage = Stage::set()?;
    // What the allocator and the runtime take once.
    Caller::start("flood")?.end()?;
    let (rules, before) = (stage.rules()?, stage.usage()?);
    let quiet = round_trips(50)?;
    let slow = Caller::start("slow readers")?;
    let vanishing = Caller::start("vanishing")?;
    let mut flood = Caller::start("flood")?;
    let mut busy = Vec::new();
    let mut most = before;
    let begin = Instant::now();
    while flood.runs()? {
        busy.push(round_trip()?);
        let usage = stage.usage()?;
        most.memory = most.memory.max(usage.memory);
        most.threads = most.threads.max(usage.threads);
        most.descriptors = most.descriptors.max(usage.descriptors);
        assert!(begin.elapsed() < Duration::from_secs(300), "the flood does not end");
    }
    flood.end()?;
    busy.sort();
    let middle = |all: &[Duration]| all[all.len() / 2];
    println!(
        "{} round trips in {:?}: {:?} (at most {:?}); quiet: {:?} (at most {:?}); at most: {most:?}",
        busy.len(),
        begin.elapsed(),
        middle(&busy),
        busy[busy.len() - 1],
        middle(&quiet),
        quiet[quiet.len() - 1],
    );
    assert!(middle(&busy) < middle(&quiet) + BOUND, "{busy:?}");
    assert!(busy[busy.len() - 1] < quiet[quiet.len() - 1] + BOUND * NOISE, "{busy:?}");
    drop((slow, vanishing));
    stage.recovers(before, GROWTH)?;
    assert_eq!(stage.rules()?, rules);
    Ok(())
}

/// Besides the properties.
const READING: [&str; 3] = ["Status", "ListServers", "Explain"];

/// Every method in turn; what reads is answered, what changes anything is refused.
fn calls() -> Vec<Vec<u8>> {
    let packet =
        BTreeMap::from([("out", "eth0"), ("to", "1.1.1.1"), ("proto", "udp"), ("port", "53")]);
    let [status, list, explain] = READING;
    vec![
        bytes(ours(status), &()),
        bytes(ours("Unlock"), &"flood"),
        bytes(ours(explain), &packet),
        bytes(ours("Lock"), &()),
        property(),
        bytes(ours("Reload"), &()),
        bytes(ours("Connect"), &""),
        bytes(ours(list), &()),
        bytes(ours("Disconnect"), &()),
        bytes(ours("Reconnect"), &()),
        bytes(ours("AddException"), &("ntp", "192.0.2.1", 60_u32)),
        bytes(ours("RemoveException"), &1_u32),
    ]
}

pub fn flood() -> Done {
    let threads: Vec<_> = (0..CONNECTIONS).map(|_| std::thread::spawn(flood_once)).collect();
    let (mut done, mut refused) = (0, 0);
    for thread in threads {
        let answers = thread.join().map_err(|_| "a caller panicked")??;
        done += answers.0;
        refused += answers.1;
    }
    println!("{done} done, {refused} refused");
    // What reads may be refused, too, where too many come at once.
    match done > 0 && done <= CONNECTIONS * CALLS.div_ceil(calls().len()) * (READING.len() + 1) {
        true => Ok(()),
        false => Err("not what was to be done".into()),
    }
}

fn flood_once() -> std::io::Result<(usize, usize)> {
    let mut wire = Wire::bus(bus::SOCKET)?;
    let calls = calls();
    for (call, serial) in calls.iter().cycle().zip(2..).take(CALLS) {
        wire.send_as(call, serial)?;
    }
    let (mut done, mut refused) = (0, 0);
    for _ in 0..CALLS {
        let answer = wire.reply()?;
        if answer.is_return() {
            done += 1;
        } else if answer.says("org.killswitch1.Error.NotAuthorized")
            || answer.says("org.killswitch1.Error.Busy")
        {
            refused += 1;
        } else {
            return Err(std::io::Error::other(format!("neither done nor refused: {answer:?}")));
        }
    }
    Ok((done, refused))
}

/// Never reads: neither its replies nor the signals.
pub fn read_slowly() -> Done {
    let bus = "org.freedesktop.DBus";
    let mut all = Vec::new();
    for _ in 0..10 {
        let mut wire = Wire::bus(bus::SOCKET)?;
        wire.send(&bytes(to(bus, "/org/freedesktop/DBus", bus, "AddMatch"), &"type='signal'"))?;
        // The bus may throw it out for what it does not read.
        for serial in 3..1000 {
            if wire.send_as(&property(), serial).is_err() {
                break;
            }
        }
        all.push(wire);
    }
    loop {
        std::thread::park();
    }
}

/// Goes before the answers come.
pub fn vanish() -> Done {
    let calls = calls();
    loop {
        let Ok(mut wire) = Wire::bus(bus::SOCKET) else { continue };
        for (call, serial) in calls.iter().cycle().zip(2..50) {
            if wire.send_as(call, serial).is_err() {
                break;
            }
        }
    }
}

pub fn large_calls_leave_nothing_behind() -> Outcome {
    if !callers::can_be_others() {
        return Ok(());
    }
    let mut stage = Stage::set()?;
    let (rules, before) = (stage.rules()?, stage.usage()?);
    let mut large = Caller::start("large calls")?;
    let mut most = before;
    while large.runs()? {
        let usage = stage.usage()?;
        most.memory = most.memory.max(usage.memory);
        most.threads = most.threads.max(usage.threads);
        round_trip()?;
    }
    large.end()?;
    println!("at most {most:?}");
    assert!(most.memory < before.memory + MOST_AT_ONCE, "{before:?}, at most {most:?}");
    stage.recovers(before, 2 * GROWTH)?;
    assert_eq!(stage.rules()?, rules);
    Ok(())
}

/// In kB, while messages of 16 MB come.
const MOST_AT_ONCE: u64 = 128 << 10;

/// Near what the bus lets pass, many at the same time.
pub fn call_at_length() -> Done {
    const LENGTH: usize = 1 << 20;
    let many: BTreeMap<String, &str> =
        (0..LENGTH / 2).map(|number| (format!("{number:08}"), "x")).collect();
    let messages = [
        bytes(ours("Explain"), &many),
        bytes(ours("Unlock"), &"x".repeat(LENGTH * 16)),
        bytes(ours("Status"), &vec![0u64; LENGTH * 2]),
    ];
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let messages = messages.clone();
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut wire = Wire::bus(bus::SOCKET)?;
                for (message, serial) in messages.iter().cycle().zip(2..).take(6) {
                    wire.send_as(message, serial)?;
                }
                for _ in 0..6 {
                    wire.reply()?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a caller panicked")??;
    }
    Ok(())
}
