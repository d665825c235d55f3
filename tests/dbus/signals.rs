//! What the daemon tells by itself, and that it finds its bus.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use killswitch::dbus::INTERFACE;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Bus, Context, Daemon, Result, setup};
use zbus::OwnedVariant;

use crate::answers::datagram;
use crate::caller::Caller;
use crate::stage::Stage;

pub const TESTS: &[Test] = &[
    ("the_bus_may_come_late_and_be_restarted", restarted),
    ("changes_are_signalled", changes),
    ("tampering_and_its_repair_are_signalled", tampered),
    ("a_blocked_packet_is_signalled_with_its_sender", blocked),
    ("the_live_view_shows_who_was_blocked", shown),
    ("what_fails_is_signalled_and_degrades", degraded),
    ("strangers_on_the_bus_do_not_wake_the_daemon", strangers),
];

type Document = BTreeMap<String, OwnedVariant>;

/// Whether a change of this property to this text has been told.
fn told(caller: &Caller, property: &str, value: &str) -> Result<bool> {
    type Changed = (String, Document, Vec<String>);
    let changes = caller.signals::<Changed>("PropertiesChanged")?;
    Ok(changes.iter().any(|(interface, changed, invalidated)| {
        assert_eq!(interface, INTERFACE);
        assert!(invalidated.is_empty(), "{invalidated:?}");
        changed
            .get(property)
            .is_some_and(|it| String::try_from(it.clone()).is_ok_and(|it| it == value))
    }))
}

/// Whether a signal StateChanged with this state and server has been told.
fn announced(caller: &Caller, state: &str, server: &str) -> Result<bool> {
    let signals = caller.signals::<(String, String, String, String)>("StateChanged")?;
    Ok(signals.iter().any(|signal| signal.0 == state && signal.2 == server))
}

fn goes_and_comes(caller: &Caller) -> Outcome {
    caller.forget();
    caller.call::<_, ()>("Disconnect", &())?;
    eventually("Disconnect is signalled", || {
        Ok(told(caller, "State", "blocked")?
            && told(caller, "Tunnel", "off")?
            && told(caller, "Server", "")?
            && announced(caller, "blocked", "")?)
    })?;
    assert!(caller.property::<bool>("Locked")?);
    caller.forget();
    caller.call::<_, ()>("Connect", &"server2")?;
    eventually("Connect is signalled", || {
        Ok(told(caller, "State", "connected")?
            && told(caller, "Server", "server2")?
            && announced(caller, "connected", "server2")?)
    })?;
    assert_eq!(caller.property::<String>("Server")?, "server2");
    Ok(())
}

fn changes() -> Outcome {
    let stage = Stage::set()?;
    goes_and_comes(&stage.caller)?;
    goes_and_comes(&Caller::at_the_socket()?)?;
    Ok(())
}

fn restarted() -> Outcome {
    let (lab, configuration) = Stage::lab("")?;
    let _daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
    let at_the_socket = Caller::at_the_socket()?;
    assert!(at_the_socket.property::<bool>("Locked")?);
    let mut bus = Bus::start(&lab.client)?;
    for round in 0..3 {
        let caller = Caller::on_the_bus()?;
        eventually("the daemon is on the bus", || {
            Ok(caller.property::<String>("State").is_ok_and(|it| it == "connected"))
        })?;
        goes_and_comes(&caller)?;
        bus.stop();
        assert!(at_the_socket.property::<bool>("Locked")?);
        if round == 1 {
            // What changed meanwhile is right afterwards.
            at_the_socket.call::<_, ()>("Connect", &"server1")?;
        }
        bus.again()?;
    }
    Ok(())
}

/// `status --watch` on a terminal, which script(1) makes.
fn shown() -> Outcome {
    let stage = Stage::set()?;
    let screen = std::env::temp_dir().join("killswitch-view");
    let view = format!(
        "{} --config {} status --watch",
        setup::program()?.display(),
        stage.configuration.display()
    );
    let mut command = Command::new("script");
    command.args(["-qfc", &view]).arg(&screen);
    // It ends with its input.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let _view = stage.lab.client.start(command)?;
    let socket = PacketSocket::open(&stage.lab.client, CLIENT_LINK)?;
    let whose = format!(" by user {}", nix::unistd::geteuid());
    let mut port = 20_000;
    // Told of is only what is blocked after it listens.
    eventually("the view shows what was blocked, and whose it is", || {
        port += 1;
        let _ = socket.send(&datagram(port));
        let text =
            String::from_utf8_lossy(&std::fs::read(&screen).unwrap_or_default()).into_owned();
        let told = format!("blocked: udp to {INTERNET_V4} port ");
        Ok(text.contains("just now") && text.contains(&told) && text.contains(&whose))
    })?;
    std::fs::remove_file(screen)?;
    Ok(())
}

fn tampered() -> Outcome {
    let stage = Stage::set()?;
    for caller in [&stage.caller, &Caller::at_the_socket()?] {
        caller.forget();
        let before: u64 = caller.property("Repairs")?;
        stage.lab.client.ip("rule delete pref 27590")?;
        eventually("Tampered and Repaired are signalled", || {
            let tampered = caller.signals::<(String, u32, String)>("Tampered")?;
            let repaired = caller.signals::<u64>("Repaired")?;
            Ok(tampered.iter().any(|it| it.0 == "routing")
                && repaired.iter().any(|&it| it > before))
        })?;
        eventually("it is whole again", || {
            let now: zbus::Result<u64> = caller.property("Repairs");
            let intact: zbus::Result<bool> = caller.property("Intact");
            Ok(now.is_ok_and(|it| it > before) && intact.is_ok_and(|it| it))
        })?;
    }
    Ok(())
}

fn blocked() -> Outcome {
    let stage = Stage::set()?;
    let caller = &stage.caller;
    let socket = PacketSocket::open(&stage.lab.client, CLIENT_LINK)?;
    assert!(socket.send(&datagram(4433)).is_err(), "not blocked");
    let mut packet = Document::new();
    eventually("LeakBlocked is signalled", || {
        let all = caller.signals::<Document>("LeakBlocked")?;
        let text = |packet: &Document, key: &str| -> Option<String> {
            String::try_from(packet.get(key)?.clone()).ok()
        };
        let ours = |packet: &Document| {
            text(packet, "destination") == Some(INTERNET_V4.to_string())
                && text(packet, "protocol").as_deref() == Some("udp")
                && text(packet, "link").as_deref() == Some(CLIENT_LINK)
                && text(packet, "source") == Some(CLIENT_V4.to_string())
        };
        packet = all.into_iter().find(ours).unwrap_or_default();
        Ok(!packet.is_empty())
    })?;
    let number = |key: &str| packet.get(key).and_then(|it| u64::try_from(it.clone()).ok());
    assert_eq!(number("port"), Some(4433), "{packet:?}");
    assert_eq!(number("source_port"), Some(40000), "{packet:?}");
    assert_eq!(number("uid"), Some(nix::unistd::geteuid().as_raw().into()), "{packet:?}");
    assert!(number("suppressed").is_some(), "{packet:?}");
    // A packet socket is in no list, so there is no group; and D-Bus has no null.
    assert!(!packet.contains_key("cgroup"), "{packet:?}");
    Ok(())
}

/// Without its program the link cannot be made.
fn degraded() -> Outcome {
    let stage = Stage::set()?;
    let caller = &stage.caller;
    let program = setup::wireguard()?;
    let away = program.with_extension("away");
    caller.call::<_, ()>("Disconnect", &())?;
    stage.wait_for("Tunnel", "off")?;
    eventually("the link goes", || Ok(!stage.lab.client.has_link(TUNNEL_LINK)?))?;
    std::fs::rename(&program, &away)?;
    caller.call::<_, ()>("Connect", &"")?;
    let reasons = || caller.property::<Vec<String>>("Degraded").unwrap_or_default();
    eventually("Failed is signalled, and Degraded says so", || {
        let failed = caller.signals::<(String, String)>("Failed")?;
        Ok(failed.iter().any(|it| it.0 == "making the tunnel's link") && !reasons().is_empty())
    })?;
    let signalled = || {
        let changes = caller.signals::<(String, Document, Vec<String>)>("PropertiesChanged");
        let changes = changes.unwrap_or_default();
        let last = changes.iter().rev().find_map(|it| it.1.get("Degraded"));
        last.and_then(|it| Vec::<String>::try_from(it.clone()).ok())
    };
    eventually("the change is signalled", || Ok(signalled().is_some_and(|it| !it.is_empty())))?;
    std::fs::rename(&away, &program)?;
    stage.wait_for("State", "connected")?;
    eventually("nothing is degraded any more", || {
        Ok(reasons().is_empty() && signalled().is_some_and(|it| it.is_empty()))
    })?;
    Ok(())
}

/// Others come, go and talk on the bus. In some such while the daemon has nothing else to do either.
fn strangers() -> Outcome {
    let mut stage = Stage::set()?;
    let process = stage.daemon.id().ok_or("no daemon")?;
    eventually("the daemon sleeps while others talk", || {
        let before = wakeups(process)?;
        for number in 0..20 {
            let stranger = Caller::on_the_bus()?;
            stranger.say("Hello", &number).during("a signal")?;
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(wakeups(process)? == before)
    })?;
    // The control: a call wakes it.
    eventually("a call wakes it", || {
        let before = wakeups(process)?;
        stage.caller.property::<String>("State").during("State")?;
        Ok(wakeups(process)? > before)
    })?;
    Ok(())
}

/// Voluntary context switches of all its threads.
fn wakeups(process: u32) -> Result<u64> {
    let tasks = format!("/proc/{process}/task");
    let mut all = 0;
    for task in std::fs::read_dir(&tasks).during(&tasks)?.flatten() {
        // A thread may have ended.
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all += count.and_then(|it| it.trim().parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(all)
}
