//! Random sequences of events. [`World::feed`] judges every single answer; here is what must come
//! of it in the end.

use std::time::{Duration, Instant};

use killswitch::dice::Dice;
use killswitch::engine::{Settings, State};

use crate::world::{MS, SECOND, Traffic, World, settings};

/// Random sequences in all, over all threads; `make test-long` asks for a million.
const SEQUENCES: u64 = 100_000;
const EVENTS: u64 = 20;

/// Of so many sequences, one is followed until the machine rests. Coprime to the number of beginnings.
const FOLLOWED: u64 = 27;

/// Where sequences begin.
fn beginnings() -> Vec<World> {
    let mut all = Vec::new();
    for managed in [true, true, false] {
        let connect_at_start = all.is_empty();
        all.push(World::with(Settings { managed, connect_at_start, ..settings() }, 1));
        let mut started = all[all.len() - 1].clone();
        started.start();
        all.push(started);
    }
    let connected = World::connected(1);
    let after = |change: &dyn Fn(&mut World), time: Duration| {
        let mut world = connected.clone();
        change(&mut world);
        world.run(time);
        world
    };
    let die = |it: &mut World| {
        it.traffic = Traffic::BothWays;
        it.dead = settings().servers.into_iter().flat_map(|it| it.endpoints).collect();
    };
    let leave = |it: &mut World| {
        it.network.v4 = None;
        it.tell(MS);
    };
    all.extend([
        connected.clone(),
        after(&|it| it.traffic = Traffic::BothWays, SECOND),
        after(&|it| (it.traffic, it.answers_probes) = (Traffic::OneWay, false), 3 * SECOND),
        after(&die, 1500 * MS),
        after(&die, 9 * SECOND),
        after(&leave, 500 * MS),
        after(&leave, 5 * SECOND),
    ]);
    all
}

fn sequence(beginnings: &[World], seed: u64, traced: bool) -> World {
    let mut world = beginnings[(seed % beginnings.len() as u64) as usize].clone();
    (world.dice, world.traced, world.events) = (Dice::new(seed), traced, 0);
    while world.events < EVENTS {
        if world.dice.once_in(4) {
            world.fault();
        } else {
            let until = world.now + MS * world.dice.pick(&[1, 20, 500, 5000]);
            world.step(until);
        }
    }
    world
}

/// The world stands still and every server lives: the machine comes to rest, in the right state.
fn follow(mut world: World) -> World {
    world.mend();
    let (begin, events) = (world.now, world.events);
    while !world.rests() {
        world.step(begin + 300 * SECOND);
        assert!(world.events - events < 4000, "no rest: {:?}", world.engine);
        assert!(world.now < begin + 300 * SECOND, "no rest: {:?}", world.engine);
    }
    assert!(world.engine.degraded().is_empty(), "{:?}", world.engine.degraded());
    let right = match world.engine.state() {
        State::Open => world.open,
        State::External { .. } => !world.settings.managed,
        State::Disconnected | State::Connected(_) => world.settings.managed,
        State::Waiting | State::Connecting(_) => false,
    };
    assert!(right, "{:?}", world.engine);
    if world.is_connected() {
        assert!(world.routed, "no route into the tunnel: {:?}", world.engine);
    }
    assert_eq!(world.resolved, world.is_connected(), "its resolvers: {:?}", world.engine);
    world
}

fn sequences(seeds: impl Iterator<Item = u64>) -> u64 {
    let mut events = 0;
    let beginnings = beginnings();
    for seed in seeds {
        let run = |traced| {
            let world = sequence(&beginnings, seed, traced);
            if seed.is_multiple_of(FOLLOWED) { follow(world) } else { world }
        };
        let world = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(false)))
            .unwrap_or_else(|_| {
                println!("seed {seed}:");
                run(true)
            });
        events += world.events;
    }
    events
}

/// ENGINE_SEQUENCES=N runs so many.
#[test]
fn random_sequences_hold_what_is_promised() {
    let asked = std::env::var("ENGINE_SEQUENCES").ok();
    let count = asked.and_then(|text| text.parse().ok()).unwrap_or(SEQUENCES);
    let begin = Instant::now();
    let threads: Vec<_> = (0..2)
        .map(|half| std::thread::spawn(move || sequences((0..count).filter(|it| it % 2 == half))))
        .collect();
    let events: u64 = threads.into_iter().map(|it| it.join().expect("replayed above")).sum();
    let rate = events as f64 / begin.elapsed().as_secs_f64();
    println!("{count} sequences, {events} events, {rate:.0} events/s");
}
