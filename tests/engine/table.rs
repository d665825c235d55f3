//! Every event in every state: the effects at once, the state then, and when the engine wants to
//! be called again. `table.txt` is the table; a change of behaviour is a change of it.

use std::fmt::Write;
use std::time::Duration;

use killswitch::engine::{
    Candidate, Command, Effect, Event, Layer, Network, Reading, Settings, State, TunnelLink,
};

use crate::world::{MS, SECOND, Traffic, World, settings, uplink};

const TABLE: &str = include_str!("table.txt");

fn kill_all(world: &mut World) {
    world.dead = world.settings.servers.iter().flat_map(|it| it.endpoints.clone()).collect();
}

fn until(mut world: World, holds: impl Fn(&World) -> bool) -> World {
    world.run_until(60 * SECOND, holds);
    world
}

fn reads(world: &World) -> bool {
    world.queue.front() == Some(&Effect::ReadTunnel)
}

/// Each state, as it comes about.
fn states() -> Vec<(&'static str, World)> {
    let started = |settings: Settings, change: fn(&mut World), time: Duration| {
        let mut world = World::with(settings, 1);
        change(&mut world);
        world.start();
        world.run(time);
        world
    };
    let connected = |change: fn(&mut World), time: Duration| {
        let mut world = World::connected(1);
        change(&mut world);
        world.run(time);
        world
    };
    let no_start = Settings { connect_at_start: false, ..settings() };
    let external = Settings { managed: false, ..settings() };
    let open = |it: &mut World| {
        it.feed(Event::Command(Command::Unlock));
    };
    let lose = |it: &mut World| {
        it.network.v4 = None;
        it.tell(MS);
    };
    let silent = |it: &mut World| {
        (it.answers_probes, it.traffic) = (false, Traffic::OneWay);
    };
    let mut doubted = started(settings(), |it| it.answers_probes = false, 10 * SECOND);
    silent(&mut doubted);
    kill_all(&mut doubted);
    (doubted.keep, doubted.effects) = (true, Vec::new());
    let doubted = until(doubted, |it| it.peer_set().is_some());
    let doubted = until(doubted, reads);
    let mut busy = connected(|it| it.traffic = Traffic::BothWays, SECOND);
    busy.run_until(SECOND, reads);
    vec![
        ("not started", World::new(1)),
        ("disconnected", started(no_start, |_| {}, SECOND)),
        ("waiting", started(settings(), |it| it.network.v4 = None, SECOND)),
        ("the link being made", started(settings(), |_| {}, Duration::ZERO)),
        ("connecting, a reading under way", until(started(settings(), kill_all, 100 * MS), reads)),
        ("between two rounds", started(settings(), kill_all, 7 * SECOND - 500 * MS)),
        ("connected and idle", World::connected(1)),
        ("connected with traffic, a reading under way", busy),
        ("connected and doubted, a reading under way", doubted),
        ("connected, the way out briefly lost", connected(lose, 500 * MS)),
        ("waiting with a session", connected(lose, 5 * SECOND)),
        ("open, connected and idle", connected(open, SECOND)),
        ("external", started(external, |_| {}, SECOND)),
        ("not one effect succeeds", started(settings(), |it| it.failing = 1, 5 * SECOND)),
    ]
}

fn events(world: &World) -> Vec<(&'static str, Event)> {
    let network = |change: fn(&mut Network)| {
        let mut network = world.network.clone();
        change(&mut network);
        Event::Network(network)
    };
    let endpoint = "192.0.2.1:1".parse().expect("an address");
    let a = Candidate { server: 0, endpoint };
    let reading = |candidate, handshake_age| {
        Event::Tunnel(Reading { candidate, handshake_age, received: 500, sent: 900_000 })
    };
    let mut without_a = settings();
    without_a.servers.remove(0);
    let unmanaged = Settings { managed: false, ..settings() };
    let fails = |effect| Event::Failed(effect, "bad luck".to_owned());
    vec![
        ("started", Event::Started { network: world.network.clone(), tunnel: None }),
        ("network: the same", network(|_| {})),
        ("network: IPv4 lost", network(|it| it.v4 = None)),
        ("network: another IPv4", network(|it| it.v4 = Some(uplink(3, "203.0.113.2")))),
        ("network: IPv6 as well", network(|it| it.v6 = Some(uplink(2, "2001:db8:1::2")))),
        ("network: the link is absent", network(|it| it.tunnel = TunnelLink::Absent)),
        ("network: the link is foreign", network(|it| it.tunnel = TunnelLink::Foreign)),
        ("network: the link is down", network(|it| it.tunnel = TunnelLink::Down)),
        ("network: the link is up", network(|it| it.tunnel = TunnelLink::Up)),
        ("link appeared", Event::LinkAppeared),
        ("disturbed: tables", Event::Disturbed(Layer::Tables)),
        ("disturbed: routing", Event::Disturbed(Layer::Routing)),
        ("tunnel: a handshake", reading(Some(a), Some(MS))),
        ("tunnel: no handshake", reading(Some(a), None)),
        ("tunnel: no peer", reading(None, None)),
        ("sent", Event::Sent),
        ("resolvers lost", Event::ResolversLost),
        ("resumed", Event::Resumed),
        ("connect", Event::Command(Command::Connect(None))),
        ("connect b", Event::Command(Command::Connect(Some(1)))),
        ("disconnect", Event::Command(Command::Disconnect)),
        ("reconnect", Event::Command(Command::Reconnect)),
        ("lock", Event::Command(Command::Lock)),
        ("unlock", Event::Command(Command::Unlock)),
        ("configured: the same", Event::Configured(settings())),
        ("configured: without a", Event::Configured(without_a)),
        ("configured: external", Event::Configured(unmanaged)),
        ("done: HoldLock", Event::Done(Effect::HoldLock)),
        ("done: ReadTunnel", Event::Done(Effect::ReadTunnel)),
        ("failed: HoldLock", fails(Effect::HoldLock)),
        ("failed: EnsureLink", fails(Effect::EnsureLink)),
        ("failed: ReadTunnel", fails(Effect::ReadTunnel)),
        ("failed: WatchTraffic", fails(Effect::WatchTraffic)),
        ("tick", Event::Tick),
    ]
}

fn name(candidate: &Candidate) -> String {
    let server = candidate.endpoint.ip().to_string().pop().unwrap_or_default();
    let letter = char::from(b'a' + (server as u8 - b'1'));
    format!("{letter}{}", if candidate.endpoint.is_ipv4() { 4 } else { 6 })
}

fn state(state: &State) -> String {
    match state {
        State::Connecting(it) => format!("Connecting {}", name(it)),
        State::Connected(it) => format!("Connected {}", name(it)),
        State::External { up } => format!("External {}", if *up { "up" } else { "down" }),
        other => format!("{other:?}"),
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::SetPeer(candidate) => format!("SetPeer {}", name(candidate)),
        Effect::Announce(it) => format!("Announce {}", state(it)),
        other => format!("{other:?}"),
    }
}

fn row(world: &World, event: Event) -> String {
    let mut engine = world.engine.clone();
    let effects = engine.handle(event, world.now);
    let effects = effects.iter().map(effect).collect::<Vec<_>>().join(", ");
    let next = engine.deadline().map_or("nothing due".to_owned(), |at| {
        format!("{} ms", (at - world.now).as_micros().div_ceil(1000))
    });
    let effects = if effects.is_empty() { "-".to_owned() } else { effects };
    format!("{effects} | {} | {next}", state(engine.state()))
}

fn table() -> String {
    let mut text = String::new();
    for (title, world) in states() {
        let degraded = if world.engine.degraded().is_empty() { "" } else { ", degraded" };
        writeln!(text, "## {title}: {}{degraded}", state(world.engine.state())).expect("a string");
        for (event, it) in events(&world) {
            writeln!(text, "{event:28} | {}", row(&world, it)).expect("a string");
        }
        writeln!(text).expect("a string");
    }
    text
}

#[test]
fn every_event_in_every_state() {
    let actual = table();
    let mut differing = String::new();
    for (expected, actual) in TABLE.lines().zip(actual.lines()).filter(|(one, two)| one != two) {
        writeln!(differing, "expected {expected}\n     got {actual}").expect("a string");
    }
    if TABLE != actual {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("table.txt");
        std::fs::write(&path, actual).expect("the table is written");
        panic!("{differing}\nThe whole table as it is now: {}", path.display());
    }
}
