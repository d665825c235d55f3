//! Random sequences of events. [`World::feed`] judges every single answer; here is what must come
//! of it in the end.

use std::time::Instant;

use killswitch::engine::State;

use crate::dice::Dice;
use crate::world::{MS, SECOND, World, settings};

/// Random sequences in all, over all threads.
const SEQUENCES: u64 = 1_000_000;
const EVENTS: u64 = 24;

/// Of so many sequences, one is followed until the machine rests.
const FOLLOWED: u64 = 25;

fn sequence(seed: u64, traced: bool) -> World {
    let mut settings = settings();
    let mut dice = Dice::new(seed);
    settings.managed = !dice.once_in(10);
    settings.connect_at_start = !dice.once_in(5);
    let mut world = World::with(settings, seed);
    world.traced = traced;
    if !dice.once_in(20) {
        world.start();
    }
    while world.events < EVENTS {
        if dice.once_in(4) {
            world.fault();
        } else {
            let until = world.now + MS * dice.pick(&[1, 20, 500, 5000]);
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
    world
}

fn sequences(seeds: impl Iterator<Item = u64>) -> u64 {
    let mut events = 0;
    for seed in seeds {
        let run = |traced| {
            let world = sequence(seed, traced);
            if seed % FOLLOWED == 0 { follow(world) } else { world }
        };
        let world = std::panic::catch_unwind(|| run(false)).unwrap_or_else(|_| {
            println!("seed {seed}:");
            run(true)
        });
        events += world.events;
    }
    events
}

#[test]
fn a_million_random_sequences_hold_what_is_promised() {
    let begin = Instant::now();
    let threads: Vec<_> = (0..2)
        .map(|half| {
            std::thread::spawn(move || sequences((0..SEQUENCES).filter(|it| it % 2 == half)))
        })
        .collect();
    let events: u64 = threads.into_iter().map(|it| it.join().expect("replayed above")).sum();
    let rate = events as f64 / begin.elapsed().as_secs_f64();
    println!("{SEQUENCES} sequences, {events} events, {rate:.0} events/s");
}
