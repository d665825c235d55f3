//! What is promised in seconds, and what must cost nothing.

use std::time::Duration;

use killswitch::engine::{Command, Effect, Event, Layer, Network, Settings, State, TunnelLink};

use crate::world::{MS, SECOND, Traffic, World, settings, uplink};

/// Forgets the effects until now, and keeps all from here.
fn listen(world: &mut World) {
    world.keep = true;
    world.effects.clear();
}

fn count(world: &World, wanted: impl Fn(&Effect) -> bool) -> usize {
    world.effects.iter().filter(|(_, it)| wanted(it)).count()
}

fn announced(world: &World) -> Vec<State> {
    let states = world.effects.iter().filter_map(|(_, it)| match it {
        Effect::Announce(state) => Some(*state),
        _ => None,
    });
    states.collect()
}

fn server_of(world: &World) -> usize {
    match world.engine.state() {
        State::Connected(candidate) => candidate.server,
        other => panic!("{other:?}"),
    }
}

fn is_peer(effect: &Effect) -> bool {
    matches!(effect, Effect::SetPeer(_))
}

fn kill(world: &mut World, server: usize) {
    world.dead.extend(world.settings.servers[server].endpoints.clone());
}

/// The last word of the network: at once.
fn network(world: &mut World, change: impl FnOnce(&mut Network)) {
    change(&mut world.network);
    let network = world.network.clone();
    world.feed(Event::Network(network));
}

#[test]
fn idle_and_connected_nothing_is_due() {
    let mut world = World::connected(1);
    assert!(world.is_connected() && world.rests(), "{:?}", world.engine);
    let events = world.events;
    world.run(24 * 3600 * SECOND);
    assert_eq!(world.events, events, "woken while idle");
}

#[test]
fn a_dead_server_is_left_within_three_seconds_of_traffic() {
    let mut slowest = Duration::ZERO;
    for seed in 0..2000 {
        let mut world = World::connected(seed);
        let server = server_of(&world);
        world.traffic = Traffic::BothWays;
        let alive = MS * world.dice.below(5000) as u32;
        world.run(alive);
        listen(&mut world);
        kill(&mut world, server);
        let took = world.run_until(3 * SECOND, |it| is_elsewhere(it, server));
        slowest = slowest.max(took);
    }
    println!("the slowest: {slowest:?}");
}

fn is_elsewhere(world: &World, than: usize) -> bool {
    matches!(world.engine.state(), State::Connected(it) if it.server != than)
}

#[test]
fn a_dead_server_is_left_when_the_first_packet_after_an_idle_time_finds_it_dead() {
    let mut world = World::connected(1);
    let server = server_of(&world);
    kill(&mut world, server);
    world.run(3600 * SECOND);
    world.traffic = Traffic::OneWay;
    world.run_until(3 * SECOND, |it| is_elsewhere(it, server));
}

#[test]
fn a_dead_server_that_never_answered_probes_is_left_after_one_handshake_more() {
    for seed in 0..500 {
        let mut world = World::new(seed);
        world.answers_probes = false;
        world.start();
        world.run(10 * SECOND);
        let server = server_of(&world);
        world.traffic = Traffic::BothWays;
        let alive = MS * world.dice.below(5000) as u32;
        world.run(alive);
        kill(&mut world, server);
        world.run_until(3 * SECOND, |it| is_elsewhere(it, server));
    }
}

#[test]
fn one_way_traffic_to_a_living_server_changes_nothing() {
    for answers_probes in [true, false] {
        let world = one_way_traffic_changes_nothing(|it| it.answers_probes = answers_probes);
        let handshakes = count(&world, is_peer);
        assert!(handshakes <= usize::from(!answers_probes), "{handshakes} handshakes");
    }
}

/// However rarely something is sent: WireGuard's own new handshakes prove nothing.
#[test]
fn an_endpoint_that_only_handshakes_reach_is_left() {
    for every in [100 * MS, SECOND, 5 * SECOND, 10 * SECOND] {
        for seed in 0..50 {
            let mut world = World::new(seed);
            world.network.v6 = Some(uplink(2, "2001:db8:9::2"));
            world.swallowing = world.settings.servers[0].endpoints.clone();
            world.traffic = Traffic::BothWays;
            world.every = every;
            world.start();
            world.run_until(120 * SECOND, |it| is_elsewhere(it, 0));
        }
    }
}

#[test]
fn what_was_left_stays_so_when_the_servers_are_reordered() {
    let mut world = World::new(1);
    let endpoints = |it: usize| world.settings.servers[it].endpoints.clone();
    world.swallowing = [endpoints(0), endpoints(1)].concat();
    world.traffic = Traffic::BothWays;
    world.start();
    world.run_until(30 * SECOND, |it| is_elsewhere(it, 0));
    let mut reordered = settings();
    reordered.servers.swap(0, 1);
    world.feed(Event::Configured(reordered));
    // Not the first one again.
    world.run_until(15 * SECOND, |it| is_elsewhere(it, 0));
    assert_eq!(server_of(&world), 2);
}

#[test]
fn one_lost_keepalive_leaves_no_server() {
    one_way_traffic_changes_nothing(|it| it.lost_keepalive = Some(5));
}

/// As boringtun: what it does not count proves nothing by staying away.
#[test]
fn a_wireguard_that_counts_no_keepalives_keeps_its_server() {
    one_way_traffic_changes_nothing(|it| it.counts = false);
}

/// To a living server that answers no probes. Gives what happened.
fn one_way_traffic_changes_nothing(prepare: impl FnOnce(&mut World)) -> World {
    let mut world = World::new(1);
    world.answers_probes = false;
    prepare(&mut world);
    world.start();
    world.run(10 * SECOND);
    listen(&mut world);
    world.traffic = Traffic::OneWay;
    world.run(600 * SECOND);
    assert_eq!(announced(&world), [], "flapped");
    world
}

#[test]
fn traffic_both_ways_costs_four_readings_a_second_and_no_probe() {
    let mut world = World::connected(1);
    world.traffic = Traffic::BothWays;
    world.run(SECOND);
    listen(&mut world);
    world.run(60 * SECOND);
    let readings = count(&world, |it| *it == Effect::ReadTunnel);
    assert!((200..=240).contains(&readings), "{readings} readings");
    assert_eq!(count(&world, |it| *it != Effect::ReadTunnel), 0);
}

#[test]
fn a_brief_loss_of_the_way_out_is_nobodys_business() {
    let mut world = World::connected(1);
    listen(&mut world);
    network(&mut world, |it| it.v4 = None);
    world.run(900 * MS);
    assert_eq!(world.effects, []);
    network(&mut world, |it| it.v4 = Some(uplink(2, "198.51.100.2")));
    let at_once: Vec<_> = world.effects.iter().map(|(_, it)| it.clone()).collect();
    assert_eq!(at_once, [Effect::ReadTunnel, Effect::Probe]);
    world.run(10 * SECOND);
    assert_eq!((count(&world, is_peer), announced(&world)), (0, vec![]));
    assert!(world.is_connected() && world.rests());
}

#[test]
fn a_longer_loss_waits_without_a_timer_and_comes_back_with_the_old_session() {
    let mut world = World::connected(1);
    let connected = *world.engine.state();
    listen(&mut world);
    network(&mut world, |it| it.v4 = None);
    world.run(100 * SECOND);
    assert!(world.rests());
    assert_eq!(announced(&world), [State::Waiting]);
    network(&mut world, |it| it.v4 = Some(uplink(2, "198.51.100.2")));
    world.run(10 * SECOND);
    assert_eq!(announced(&world), [State::Waiting, connected]);
    assert_eq!(count(&world, is_peer), 0);
}

#[test]
fn an_expired_session_gets_a_handshake_at_once() {
    for resumed in [true, false] {
        let mut world = World::connected(1);
        if !resumed {
            network(&mut world, |it| it.v4 = None);
        }
        world.run(200 * SECOND);
        listen(&mut world);
        if resumed {
            world.feed(Event::Resumed);
        } else {
            network(&mut world, |it| it.v4 = Some(uplink(2, "198.51.100.9")));
        }
        assert_eq!(world.peer_set().map(|(at, it)| (at, it.server)), Some((world.now, 0)));
        world.run_until(100 * MS, World::is_connected);
    }
}

#[test]
fn a_new_way_out_that_the_old_session_does_not_take_gets_a_handshake_in_a_second() {
    let mut world = World::connected(1);
    world.answers_probes = false;
    listen(&mut world);
    network(&mut world, |it| it.v4 = Some(uplink(3, "203.0.113.2")));
    let begin = world.now;
    world.run(10 * SECOND);
    let (at, candidate) = world.peer_set().expect("a new handshake");
    assert_eq!(candidate.server, 0);
    assert!(at - begin <= SECOND + 50 * MS, "{:?}", at - begin);
    assert_eq!(announced(&world), [], "a check is not a loss");
}

#[test]
fn a_family_that_appears_alone_changes_nothing() {
    let mut world = World::connected(1);
    listen(&mut world);
    network(&mut world, |it| it.v6 = Some(uplink(2, "2001:db8:1::2")));
    assert_eq!(world.effects, []);
    assert!(world.rests());
}

#[test]
fn when_the_other_family_remains_it_is_taken() {
    let mut world = World::connected(1);
    network(&mut world, |it| it.v6 = Some(uplink(2, "2001:db8:1::2")));
    network(&mut world, |it| it.v4 = None);
    world.run_until(
        2 * SECOND,
        |it| matches!(it.engine.state(), State::Connected(it) if it.endpoint.is_ipv6()),
    );
}

#[test]
fn rounds_back_off_and_a_server_that_returns_is_found() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        for server in 0..3 {
            kill(&mut world, server);
        }
        world.start();
        listen(&mut world);
        world.run(600 * SECOND);
        let set: Vec<_> = world.effects.iter().filter(|(_, it)| is_peer(it)).collect();
        let gaps: Vec<_> = set.windows(2).map(|it| it[1].0 - it[0].0).collect();
        assert!(gaps.iter().all(|it| *it >= 2 * SECOND && *it <= 46 * SECOND), "{gaps:?}");
        assert!(set.len() < 60, "{} attempts", set.len());
        world.dead.clear();
        world.run_until(46 * SECOND, World::is_connected);
    }
}

/// By `wg set`, or a sysctl.
#[test]
fn what_somebody_changed_unseen_is_mended_after_a_round_without_success() {
    let changes: [fn(&mut World); 2] =
        [|world| world.foreign_key = true, |world| world.replies_dropped = true];
    for change in changes {
        let mut world = World::connected(1);
        world.traffic = Traffic::BothWays;
        change(&mut world);
        world.run_until(60 * SECOND, |it| !it.is_connected());
        world.run_until(60 * SECOND, World::is_connected);

        let mut world = World::connected(1);
        change(&mut world);
        world.feed(Event::Command(Command::Reconnect));
        world.run_until(SECOND, |it| it.is_connected() && it.queue.is_empty());
        assert!(!world.foreign_key && !world.replies_dropped);
    }
}

#[test]
fn a_storm_of_reconnects_costs_no_more_than_a_few() {
    let mut world = World::connected(1);
    listen(&mut world);
    for _ in 0..1000 {
        world.feed(Event::Command(Command::Reconnect));
    }
    world.run(10 * SECOND);
    assert!(world.effects.len() < 30, "{:?}", world.effects);
    assert!(world.is_connected() && world.rests());
}

#[test]
fn what_worked_on_a_network_is_tried_first_there() {
    let mut world = World::connected(1);
    kill(&mut world, 0);
    world.feed(Event::Command(Command::Reconnect));
    world.run(10 * SECOND);
    assert_eq!(server_of(&world), 1);
    let home = world.network.v4.clone();
    world.dead.clear();
    let expire = 300 * SECOND;
    network(&mut world, |it| it.v4 = Some(uplink(7, "203.0.113.7")));
    kill(&mut world, 1);
    world.feed(Event::Command(Command::Reconnect));
    world.run(10 * SECOND);
    assert_eq!(server_of(&world), 0);
    network(&mut world, |it| it.v4 = None);
    world.dead.clear();
    world.run(expire);
    network(&mut world, |it| it.v4 = home);
    world.run(SECOND);
    assert_eq!(server_of(&world), 1, "it worked here last");
}

#[test]
fn commands_act_at_once() {
    let mut world = World::connected(1);
    for (command, server) in
        [(Command::Connect(Some(2)), 2), (Command::Reconnect, 2), (Command::Connect(Some(1)), 1)]
    {
        listen(&mut world);
        world.feed(Event::Command(command));
        assert_eq!(world.peer_set().map(|(at, it)| (at, it.server)), Some((world.now, server)));
        world.run_until(50 * MS, World::is_connected);
        assert_eq!(server_of(&world), server);
    }
    listen(&mut world);
    world.feed(Event::Command(Command::Connect(Some(1))));
    assert_eq!(world.effects, [], "it is connected already");
    world.feed(Event::Command(Command::Disconnect));
    world.run(10 * SECOND);
    assert_eq!(*world.engine.state(), State::Disconnected);
    assert!(world.rests());
}

#[test]
fn the_last_of_several_commands_at_once_counts() {
    for commands in 1..8 {
        let mut world = World::connected(1);
        world.slowness = 200 * MS;
        for number in 0..commands {
            let disconnect = number % 2 == 0;
            let command = if disconnect { Command::Disconnect } else { Command::Connect(None) };
            world.feed(Event::Command(command));
        }
        world.run(60 * SECOND);
        assert!(world.rests(), "{commands}");
        match commands % 2 {
            0 => assert!(world.is_connected(), "{commands}"),
            _ => {
                assert_eq!(*world.engine.state(), State::Disconnected, "{commands}");
                assert_eq!(world.network.tunnel, TunnelLink::Absent, "{commands}");
            }
        }
    }
}

#[test]
fn a_storm_of_disturbances_costs_two_effects() {
    let mut world = World::connected(1);
    listen(&mut world);
    for _ in 0..10_000 {
        world.feed(Event::Disturbed(Layer::Tables));
        world.feed(Event::Disturbed(Layer::Routing));
        world.feed(Event::LinkAppeared);
    }
    world.run(SECOND);
    assert_eq!(count(&world, |it| *it == Effect::HoldLock), 2);
    assert_eq!(count(&world, |it| *it == Effect::EnsureRoutes), 2);
    assert!(world.rests());
}

#[test]
fn a_lock_that_cannot_be_held_is_tried_for_ever_and_told() {
    let mut world = World::new(1);
    world.failing = 1;
    world.start();
    world.run(3600 * SECOND);
    assert!(world.engine.degraded().iter().any(|it| it.contains("lock")));
    listen(&mut world);
    world.run(60 * SECOND);
    let tries = count(&world, |it| *it == Effect::HoldLock);
    assert!((5..=7).contains(&tries), "{tries} in a minute");
    world.failing = 0;
    world.run(60 * SECOND);
    assert_eq!(world.engine.degraded(), [""; 0]);
    assert!(world.is_connected() && world.rests());
}

#[test]
fn unlocked_stays_unlocked_until_told_otherwise() {
    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Unlock));
    listen(&mut world);
    for event in [
        Event::LinkAppeared,
        Event::Disturbed(Layer::Tables),
        Event::Disturbed(Layer::Routing),
        Event::ResolversLost,
        Event::Resumed,
        Event::Configured(settings()),
        Event::Command(Command::Reconnect),
        Event::Command(Command::Disconnect),
        Event::Command(Command::Connect(None)),
    ] {
        world.feed(event);
        world.run(SECOND);
    }
    assert_eq!(count(&world, |it| *it == Effect::HoldLock), 0);
    assert_eq!(*world.engine.state(), State::Open);
    world.feed(Event::Command(Command::Lock));
    assert_eq!(*world.engine.state(), State::Open, "not before it is closed");
    world.run(10 * SECOND);
    assert!(world.is_connected());
}

#[test]
fn the_tunnels_resolvers_are_not_set_while_the_lock_is_open() {
    let mut world = World::connected(1);
    assert!(world.resolved);
    listen(&mut world);
    world.feed(Event::Command(Command::Unlock));
    world.run(SECOND);
    for event in [Event::Command(Command::Reconnect), Event::Configured(settings())] {
        world.feed(event);
        world.run(10 * SECOND);
        assert!(!world.resolved, "{:?}", world.engine);
    }
    assert_eq!(count(&world, |it| *it == Effect::SetDns), 0);
    world.feed(Event::Command(Command::Lock));
    world.run(SECOND);
    assert!(world.is_connected() && world.resolved, "{:?}", world.engine);
}

#[test]
fn an_unlock_during_a_handshake_gives_the_resolvers_back() {
    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Reconnect));
    world.feed(Event::Command(Command::Unlock));
    world.run(10 * SECOND);
    assert!(!world.resolved, "{:?}", world.engine);
}

#[test]
fn resolvers_that_are_not_given_back_are_tried_again_and_told() {
    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Unlock));
    while let Some(effect) = world.queue.pop_front() {
        let fails = effect == Effect::RestoreDns;
        let end = if fails { Event::Failed(effect, "busy".into()) } else { Event::Done(effect) };
        world.feed(end);
    }
    let told = world.engine.degraded().join("; ");
    assert!(told.contains("the resolvers cannot be restored: busy"), "{told}");
    world.run(SECOND);
    assert!(!world.resolved && world.engine.degraded().is_empty(), "{:?}", world.engine);
}

#[test]
fn an_unlock_that_fails_leaves_the_tunnels_resolvers() {
    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Unlock));
    while let Some(effect) = world.queue.pop_front() {
        let fails = effect == Effect::Unlock;
        let end =
            if fails { Event::Failed(effect, "bad luck".into()) } else { Event::Done(effect) };
        world.feed(end);
    }
    world.run(SECOND);
    assert!(world.is_connected() && world.resolved, "{:?}", world.engine);
}

#[test]
fn the_resolvers_that_a_killed_daemon_left_are_given_back() {
    let no_start = Settings { connect_at_start: false, ..settings() };
    let external = Settings { managed: false, ..settings() };
    for settings in [settings(), no_start, external] {
        let mut world = World::with(settings, 1);
        world.start();
        world.run_until(SECOND, |it| !it.resolved);
    }
}

#[test]
fn a_link_that_vanishes_is_made_anew_at_once() {
    for loss in [TunnelLink::Absent, TunnelLink::Down, TunnelLink::Foreign] {
        let mut world = World::connected(1);
        listen(&mut world);
        network(&mut world, |it| it.tunnel = loss);
        let at_once: Vec<_> = world.effects.iter().map(|(_, it)| it.clone()).collect();
        assert!(
            matches!(
                at_once[..],
                [
                    Effect::EnsureLink,
                    Effect::SetPeer(_),
                    Effect::EnsureRoutes,
                    Effect::Probe,
                    Effect::Announce(State::Connecting(_))
                ]
            ),
            "{at_once:?}"
        );
        world.run_until(SECOND, World::is_connected);
    }
}

/// As when the client's own link takes the tunnel's name and gives it back: the tunnel's link goes
/// before its coming was told, and the way out changes before its going shows.
#[test]
fn a_link_that_is_made_again_unseen_gets_its_routes() {
    let mut world = World::new(1);
    world.start();
    world.run_until(SECOND, |it| it.routed);
    world.lose_link(TunnelLink::Absent);
    network(&mut world, |it| it.v4 = Some(uplink(3, "203.0.113.2")));
    world.run_until(5 * SECOND, World::is_connected);
    world.run(5 * SECOND);
    assert!(world.routed && world.rests(), "{:?}", world.engine);
}

/// Opening the lock takes the tunnel's routes, whatever comes of it, and whichever of the two lanes,
/// the lock's or the tunnel's, is done first.
#[test]
fn a_lock_that_closes_again_has_its_routes_after() {
    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Unlock));
    world.feed(Event::Command(Command::Lock));
    for effect in [Effect::EnsureRoutes, Effect::Unlock, Effect::HoldLock] {
        world.feed(Event::Done(effect));
    }
    assert!(world.effects.iter().any(|(_, it)| *it == Effect::EnsureRoutes));

    let mut world = World::connected(1);
    world.feed(Event::Command(Command::Unlock));
    world.run(SECOND);
    world.failing = 1;
    world.feed(Event::Command(Command::Unlock));
    world.run_until(SECOND, |it| it.queue.contains(&Effect::HoldLock));
    world.failing = 0;
    world.run(SECOND);
    assert!(world.is_connected() && world.routed, "{:?}", world.engine);
}

#[test]
fn a_link_that_never_shows_is_asked_for_ever_more_rarely() {
    let mut world = World::connected(1);
    listen(&mut world);
    // The kernel's word never comes: the world's link is there, the engine hears of none.
    let silent = Network { tunnel: TunnelLink::Absent, ..world.network.clone() };
    world.feed(Event::Network(silent));
    world.run(600 * SECOND);
    let made = count(&world, |it| *it == Effect::EnsureLink);
    assert!((5..=30).contains(&made), "{made} times");
    assert!(!world.engine.degraded().is_empty());
}

#[test]
fn without_a_watch_it_polls_and_says_so() {
    let mut world = World::connected(1);
    let server = server_of(&world);
    world.traffic = Traffic::BothWays;
    world.run(SECOND);
    world.traffic = Traffic::None;
    world.cannot_watch = true;
    world.run(60 * SECOND);
    assert!(world.engine.degraded().iter().any(|it| it.contains("polling")));
    kill(&mut world, server);
    world.traffic = Traffic::OneWay;
    world.run_until(3 * SECOND, |it| is_elsewhere(it, server));
}

#[test]
fn a_new_configuration_keeps_a_session_that_it_still_names() {
    let mut world = World::connected(1);
    listen(&mut world);
    let mut turned = settings();
    turned.servers.rotate_left(1);
    world.feed(Event::Configured(turned));
    world.run(10 * SECOND);
    assert_eq!((count(&world, is_peer), server_of(&world)), (0, 2));
    let mut without = settings();
    without.servers.remove(0);
    world.feed(Event::Configured(without));
    world.run(10 * SECOND);
    assert_eq!((count(&world, is_peer), server_of(&world)), (1, 0));
}

#[test]
fn a_restarted_daemon_adopts_what_works() {
    for connect_at_start in [true, false] {
        let mut old = World::connected(1);
        old.run(60 * SECOND);
        let settings = killswitch::engine::Settings { connect_at_start, ..settings() };
        old.engine = killswitch::engine::Engine::new(settings.clone(), 2);
        old.settings = settings;
        listen(&mut old);
        old.start();
        assert!(old.is_connected());
        old.run(10 * SECOND);
        assert_eq!(count(&old, is_peer), 0);
        assert_eq!(count(&old, |it| *it == Effect::RestoreDns), 0);
        assert!(old.is_connected() && old.rests());
    }
}

#[test]
fn what_failed_for_want_of_a_link_is_done_when_there_is_one() {
    let mut world = World::connected(1);
    world.engine = killswitch::engine::Engine::new(settings(), 2);
    world.start();
    world.failing = 1;
    world.run(50 * MS);
    assert!(!world.engine.degraded().is_empty());
    world.failing = 0;
    world.run(10 * SECOND);
    assert_eq!(world.engine.degraded(), [""; 0]);
    assert!(world.is_connected() && world.rests());
}
