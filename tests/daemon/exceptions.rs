//! Exceptions: what is open for a while, and that it is closed again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use killswitch::dbus::{INTERFACE, NAME, PATH, SOCKET};
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Failed, Outcome, Test, eventually};
use killswitch::lab::traffic::Flood;
use killswitch::lab::{Capture, Expectation, Result};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use zbus::Proxy;
use zbus::proxy::CacheProperties;

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("an_exception_opens_one_thing_and_ends_at_its_time", ends),
    ("an_exception_is_told_and_no_damage", told),
    ("an_exception_that_is_removed_ends_at_once", removed),
    ("lock_reload_and_unlock_end_exceptions", overruled),
    ("a_killed_daemon_s_exceptions_end_with_the_next_start", killed),
    ("a_stopped_daemon_s_exceptions_end_before_it", stopped),
    ("an_exception_s_connections_end_with_it", connections),
    ("exceptions_of_every_kind", kinds),
    ("exceptions_are_held_to_the_configuration", refused),
    ("exceptions_over_d_bus", over_d_bus),
    ("exceptions_locks_and_reloads_at_the_same_time", at_once),
    ("exceptions_by_the_dozen_end_one_by_one", many),
];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(stage: &Stage, arguments: &[&str]) -> std::result::Result<String, String> {
    let output = stage.ask(arguments).map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(said(&output)),
        false => Err(format!("{arguments:?}: {}", said(&output))),
    }
}

/// Opens the LAN; the exception's number.
fn add(stage: &Stage, network: &str, duration: &str) -> std::result::Result<u64, String> {
    let text = done(stage, &["--json", "exception", "add", "lan", network, "--for", duration])?;
    let added: serde_json::Value = serde_json::from_str(&text).map_err(|it| it.to_string())?;
    added["id"].as_u64().ok_or_else(|| format!("no number: {text}"))
}

/// On the link itself: through the tunnel the laboratory's servers reach it, too.
fn neighbour_answers(stage: &Stage) -> Result<bool> {
    let to = NEIGHBOUR_V4.to_string();
    let ping = ["-c1", "-W1", "-q", "-I", CLIENT_LINK, &to];
    Ok(stage.lab.client.output("ping", &ping)?.status.success())
}

/// A capture by which the LAN may be reached.
fn capture_with_lan(stage: &Stage) -> Result<Capture> {
    let mut expectation = Expectation::of(&stage.lab);
    expectation.lan = LAN_V4.parse().into_iter().collect();
    // allow.lan allows reports of group membership, too.
    expectation.groups = true;
    Capture::start(&stage.lab, expectation)
}

/// How many there are.
fn exceptions(stage: &Stage) -> Result<usize> {
    let output = stage.ask(&["--json", "exception", "list"])?;
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(list["exceptions"].as_array().map_or(usize::MAX, Vec::len))
}

/// Where the daemon does not answer in time, nobody knows of exceptions, and it is asked again.
fn is_whole(stage: &Stage) -> Outcome {
    let mut status = serde_json::Value::Null;
    let silent = serde_json::json!("the daemon does not answer");
    eventually("the daemon answers", || {
        status = stage.status()?;
        let said = status["degraded"].as_array();
        Ok(!said.is_some_and(|said| said.contains(&silent)))
    })?;
    assert_eq!((&status["intact"], &status["degraded"]), (&true.into(), &serde_json::json!([])));
    Ok(())
}

/// Closed in the kernel, and so said.
fn is_closed(stage: &Stage) -> Outcome {
    assert!(!neighbour_answers(stage)?, "the LAN is open");
    assert_eq!(exceptions(stage)?, 0);
    is_whole(stage)
}

fn ends() -> Outcome {
    const LASTS: Duration = Duration::from_secs(3);
    let stage = Stage::set()?;
    let lan = capture_with_lan(&stage)?;
    let to = SocketAddr::from((NEIGHBOUR_V4, 9));
    let flood = Flood::start(&stage.lab, to, Some(CLIENT_LINK))?;
    is_closed(&stage)?;
    stage.nothing_leaked("being closed")?;

    let asked = Instant::now();
    let id = add(&stage, LAN_V4, "3s")?;
    let left = || lan.report().allowed.get("LAN").copied().unwrap_or_default();
    eventually("the LAN is open", || Ok(left() > 0))?;
    // Up to the last packet that left.
    let (mut before, mut last) = (0, Instant::now());
    eventually("it ends", || {
        let now = left();
        if now != before {
            (before, last) = (now, Instant::now());
        }
        Ok(last.elapsed() > Duration::from_secs(1))
    })?;
    let lasted = last - asked;
    println!("{before} packets from asking to the last one, which left after {lasted:?}");
    assert!(lasted >= LASTS, "it ended after {lasted:?}");
    // What knows of no exception took them for leaks; and now there is none, though all go on sending.
    assert!(stage.capture.take().leaked_total() > 0);
    is_closed(&stage)?;
    stage.nothing_leaked("after its end")?;
    let flooded = flood.stop()?;
    assert!(flooded.refused > 0, "{flooded:?}");
    let report = lan.take();
    assert_eq!(report.leaked_total(), 0, "{}", report.summary(5));
    stage.wait_for_traffic("an exception")?;
    let log = stage.daemon.log()?;
    assert!(log.contains(&format!("exception {id} ends: its time is over")), "{log}");
    Ok(())
}

/// While it is open, nobody takes the lock for damaged.
fn told() -> Outcome {
    let stage = Stage::set()?;
    let id = add(&stage, LAN_V4, "1h")?;
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    is_whole(&stage)?;
    let mut status = serde_json::Value::Null;
    eventually("status tells of it", || {
        status = stage.status()?;
        Ok(status["exceptions"][0].is_object())
    })?;
    let told = &status["exceptions"][0];
    assert_eq!(
        (&told["id"], &told["kind"], &told["what"]),
        (&id.into(), &"lan".into(), &LAN_V4.into())
    );
    assert!(told["left_s"].as_u64().is_some_and(|left| (3000..=3600).contains(&left)), "{told}");
    let list = done(&stage, &["exception", "list"])?;
    assert!(list.starts_with(&format!("{id}: lan {LAN_V4}, 59m ")), "{list}");
    let list: serde_json::Value =
        serde_json::from_str(&done(&stage, &["--json", "exception", "list"])?)?;
    assert_eq!(list["exceptions"][0]["id"], id);
    eventually("status says so in words", || {
        Ok(said(&stage.ask(&["status"])?).contains(&format!("exception {id}: lan {LAN_V4}, ")))
    })?;
    // It is no reason to reload, but to be told of: what is configured is not what holds.
    let plan = done(&stage, &["plan"])?;
    assert!(plan.contains("192.168.1.0/24"), "{plan}");
    // Nobody mends what is meant.
    stage.lab.client.ip("link add br9 type bridge\nlink delete br9")?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    let log = stage.daemon.log()?;
    assert!(!log.contains("mending"), "{log}");
    // And what is not meant is mended to what is.
    stage.lab.client.output("ip", &["rule", "delete", "pref", "27590"])?;
    eventually("it is mended", || Ok(stage.status()?["intact"] == true))?;
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    assert_eq!(exceptions(&stage)?, 1);
    Ok(())
}

fn removed() -> Outcome {
    let stage = Stage::set()?;
    let id = add(&stage, LAN_V4, "1h")?.to_string();
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    done(&stage, &["exception", "remove", &id])?;
    is_closed(&stage)?;
    let again = stage.ask(&["exception", "remove", &id])?;
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    assert!(said(&again).contains("there is no exception"), "{}", said(&again));
    // Of two that overlap the other stays.
    let [one, _] = [add(&stage, LAN_V4, "1h")?, add(&stage, LAN_V4, "2h")?];
    done(&stage, &["exception", "remove", &one.to_string()])?;
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    is_whole(&stage)?;
    Ok(())
}

fn overruled() -> Outcome {
    let mut stage = Stage::set()?;
    for ending in [&["lock", "--yes"], &["reload", "--yes"]] {
        add(&stage, LAN_V4, "1h")?;
        assert!(neighbour_answers(&stage)?, "the LAN is closed");
        done(&stage, ending)?;
        is_closed(&stage)?;
    }
    add(&stage, LAN_V4, "1h")?;
    stage.daemon.signal(Signal::SIGHUP)?;
    eventually("it ends", || Ok(exceptions(&stage)? == 0))?;
    is_closed(&stage)?;
    // A reload that cannot be done leaves everything as it was.
    let good = std::fs::read_to_string(&stage.configuration)?;
    add(&stage, LAN_V4, "1h")?;
    std::fs::write(&stage.configuration, format!("{good}\n[allow]\nlna = []\n"))?;
    assert_eq!(stage.ask(&["reload", "--yes"])?.status.code(), Some(78));
    std::fs::write(&stage.configuration, good)?;
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    assert_eq!(exceptions(&stage)?, 1);
    done(&stage, &["unlock", "--yes"])?;
    // What ends with it closes nothing.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20));
    let open = stage.ask(&["exception", "add", "lan", LAN_V4, "--for", "1h"])?;
    assert!(said(&open).contains("the lock is open"), "{}", said(&open));
    done(&stage, &["lock", "--yes"])?;
    is_closed(&stage)?;
    stage.wait_for_traffic("locking again")?;
    Ok(())
}

/// Also while the lock is being held for other reasons.
fn stopped() -> Outcome {
    const NETWORK: &str = "192.168.7.0/24";
    let mut stage = Stage::set()?;
    let table =
        |stage: &Stage| stage.lab.client.command("nft", &["list", "table", "inet", "killswitch"]);
    // Each link that appears is a reason to hold it.
    let mut links = Command::new("sh");
    links.args([
        "-c",
        "while :; do ip link add passing type veth peer name by; ip link delete passing; done",
    ]);
    let _links = stage.lab.client.start(links)?;
    for round in 0..20_u64 {
        add(&stage, NETWORK, "1h")?;
        assert!(table(&stage)?.contains(NETWORK), "it is not open");
        std::thread::sleep(Duration::from_millis(3 * (round % 10)));
        stage.daemon.signal(Signal::SIGTERM)?;
        eventually("the daemon ends", || Ok(!stage.daemon.runs()))?;
        assert!(!table(&stage)?.contains(NETWORK), "open without a daemon, round {round}");
        stage.daemon.again(&stage.lab)?;
        eventually("the daemon is back", || {
            Ok(stage.ask(&["exception", "list"])?.status.success())
        })?;
    }
    Ok(())
}

fn killed() -> Outcome {
    let mut stage = Stage::set()?;
    add(&stage, LAN_V4, "1h")?;
    assert!(neighbour_answers(&stage)?, "the LAN is closed");
    is_whole(&stage)?;
    stage.daemon.crash();
    // Nobody knows of it any more: the kernel does not hold what is configured.
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(30));
    stage.daemon.again(&stage.lab)?;
    eventually("it is locked", || Ok(stage.ask(&["status"])?.status.code() == Some(0)))?;
    is_closed(&stage)?;
    std::thread::sleep(Duration::from_millis(100));
    stage.capture.take();
    std::thread::sleep(Duration::from_millis(500));
    stage.nothing_leaked("after the next start")?;
    // One that ends in order closes it itself.
    add(&stage, LAN_V4, "1h")?;
    stage.daemon.signal(Signal::SIGTERM)?;
    eventually("it ends", || Ok(!stage.daemon.runs()))?;
    assert!(!neighbour_answers(&stage)?, "the LAN is open");
    is_whole(&stage)?;
    // Without a daemon, `lock` does it.
    stage.daemon.again(&stage.lab)?;
    eventually("it is locked", || Ok(stage.ask(&["exception", "list"])?.status.success()))?;
    add(&stage, LAN_V4, "1h")?;
    stage.daemon.crash();
    done(&stage, &["lock", "--yes"])?;
    assert!(!neighbour_answers(&stage)?, "the LAN is open");
    is_whole(&stage)?;
    Ok(())
}

fn connections() -> Outcome {
    let stage = Stage::set()?;
    let listener = stage.lab.neighbour.run(|| TcpListener::bind("0.0.0.0:4000"))??;
    let id = add(&stage, LAN_V4, "1h")?.to_string();
    let to = SocketAddr::from((NEIGHBOUR_V4, 4000));
    let mut ours = stage.lab.client.run(|| TcpStream::connect(to))??;
    let (mut theirs, _) = listener.accept()?;
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    }
    let mut byte = [0];
    ours.write_all(b"a")?;
    theirs.read_exact(&mut byte)?;
    done(&stage, &["exception", "remove", &id])?;
    std::thread::sleep(Duration::from_millis(100));
    stage.capture.take();
    // Neither way, though both ends still know the connection.
    let _ = ours.write_all(b"b");
    assert!(theirs.read_exact(&mut byte).is_err(), "it goes on");
    let _ = theirs.write_all(b"c");
    assert!(ours.read_exact(&mut byte).is_err(), "it goes on");
    stage.nothing_leaked("a connection of an exception that has ended")?;
    Ok(())
}

fn kinds() -> Outcome {
    let stage = Stage::set()?;
    let neighbour = |work: &[&str]| -> Result<bool> {
        Ok(stage.lab.neighbour.output(work[0], &work[1..])?.status.success())
    };
    // Something that listens, to see who can reach it.
    let listener = stage.lab.client.run(|| TcpListener::bind("0.0.0.0:2222"))??;
    listener.set_nonblocking(true)?;
    let script = format!("import socket; socket.create_connection(('{CLIENT_V4}', 2222), 1)");
    let knocks = || neighbour(&["python3", "-c", &script]);
    assert!(!knocks()?, "it is open");
    let words = ["exception", "add", "inbound", "tcp/2222", "from", LAN_V4, "--for", "1h"];
    done(&stage, &words)?;
    assert!(knocks()?, "it is closed");
    is_whole(&stage)?;
    let ntp = ["explain", "--out", "eth0", "--to", "192.168.1.20", "--proto", "udp"];
    assert!(done(&stage, &ntp)?.contains("reject"), "explain asks the configuration");
    let address = NEIGHBOUR_V4.to_string();
    done(&stage, &["exception", "add", "ntp", &address, "--for", "1h"])?;
    let asks = |port: u16| -> Result<bool> {
        let script = format!(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
             s.settimeout(1); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'{CLIENT_LINK}'); \
             s.connect(('{NEIGHBOUR_V4}', {port})); s.send(b'x'); s.recv(9)"
        );
        Ok(stage.lab.client.output("python3", &["-c", &script])?.status.success())
    };
    assert!(asks(123)?, "it is closed");
    assert!(!asks(4433)?, "more is open than the NTP server");
    is_whole(&stage)?;
    assert_eq!(exceptions(&stage)?, 2);
    done(&stage, &["lock", "--yes"])?;
    assert!(!knocks()? && !asks(123)?, "it is open");
    is_whole(&stage)
}

fn refused() -> Outcome {
    let stage = Stage::set()?;
    for (what, status, why) in [
        (&["lan", "0.0.0.0/0"][..], 2, "the whole Internet"),
        (&["lan", "10.0.0.0/8"], 2, "the tunnel's own address"),
        (&["lan", "198.51.100.0/24"], 2, "contains the server"),
        (&["ntp", "pool.ntp.org"], 2, "not an IP address"),
        (&["inbound", "tcp/22"], 2, "PROTOCOL/PORT from NETWORK"),
        (&["dns", "192.168.1.1"], 2, "lan, ntp, inbound"),
    ] {
        let output = stage.ask(&[&["exception", "add"], what, &["--for", "1m"]].concat())?;
        assert_eq!(output.status.code(), Some(status), "{what:?}: {}", said(&output));
        assert!(said(&output).contains(why), "{what:?}: {}", said(&output));
    }
    for duration in ["0s", "25h", "1500ms", "10"] {
        let output = stage.ask(&["exception", "add", "lan", LAN_V4, "--for", duration])?;
        assert_eq!(output.status.code(), Some(2), "{duration}: {}", said(&output));
    }
    is_closed(&stage)?;
    stage.nothing_leaked("refused exceptions")?;
    Ok(())
}

fn many() -> Outcome {
    /// [`killswitch::exceptions::MOST`]
    const MOST: usize = killswitch::exceptions::MOST;
    let stage = Stage::set()?;
    for number in 0..MOST {
        let network = format!("192.168.{}.0/24", 100 + number);
        add(&stage, &network, &format!("{}s", 5 + number % 4))?;
    }
    if exceptions(&stage)? == MOST {
        let output = stage.ask(&["exception", "add", "lan", LAN_V4, "--for", "1m"])?;
        let text = said(&output);
        assert!(text.contains("already") || exceptions(&stage)? < MOST, "{text}");
    }
    eventually("they end", || Ok(exceptions(&stage)? == 0))?;
    is_closed(&stage)?;
    stage.wait_for_traffic("exceptions")?;
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The daemon at its control socket.
async fn manager() -> std::result::Result<Proxy<'static>, Failed> {
    let stream = tokio::net::UnixStream::connect(SOCKET).await?.into_std()?;
    let connection = zbus::connection::Builder::unix_stream(stream).p2p().build().await?;
    let manager = zbus::proxy::Builder::new(&connection)
        .destination(NAME)
        .path(PATH)
        .interface(INTERFACE)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    Ok(manager)
}

/// The name of the error that a call ends with, without what all begin with; or nothing.
async fn refusal<B>(manager: &Proxy<'_>, method: &str, arguments: &B) -> String
where
    B: serde::Serialize + zbus::DynamicType,
{
    match manager.call_method(method, arguments).await {
        Err(zbus::Error::MethodError(name, ..)) => {
            name.as_str().trim_start_matches("org.killswitch1.Error.").to_owned()
        }
        Err(error) => error.to_string(),
        Ok(_) => String::new(),
    }
}

type Told = Vec<(u32, String, String, u64)>;

fn over_d_bus() -> Outcome {
    let stage = Stage::set()?;
    runtime()?.block_on(async {
        let manager = manager().await?;
        let properties = zbus::fdo::PropertiesProxy::builder(manager.connection())
            .destination(NAME)
            .path(PATH)
            .build()
            .await?;
        let mut changes = properties.receive_properties_changed().await?;
        let lan = |seconds: u32| ("lan", LAN_V4, seconds);
        for seconds in [0, 86401, u32::MAX] {
            let said = refusal(&manager, "AddException", &lan(seconds)).await;
            assert_eq!(said, "InvalidArgument", "{seconds}");
        }
        let said = refusal(&manager, "AddException", &("lan", "10.64.0.0/24", 60_u32)).await;
        assert_eq!(said, "InvalidArgument");
        assert_eq!(refusal(&manager, "RemoveException", &(7_u32,)).await, "UnknownException");

        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let uptime: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
        let id: u32 = manager.call("AddException", &lan(3600)).await?;
        loop {
            let change = changes.next().await.ok_or("no change is told")?;
            if change.args()?.changed_properties.contains_key("Exceptions") {
                break;
            }
        }
        let told: Told = manager.get_property("Exceptions").await?;
        let [(told_id, kind, what, ends)] = &told[..] else { return Err("not one".into()) };
        assert_eq!((*told_id, kind.as_str(), what.as_str()), (id, "lan", LAN_V4));
        let lasts = *ends as f64 / 1e6 - uptime;
        assert!((3599.0..3660.0).contains(&lasts), "{lasts} s");
        // At once in what others are told, and in the kernel.
        let (changed, _): (bool, Vec<String>) = manager.call("Lock", &()).await?;
        assert!(changed);
        let told: Told = manager.get_property("Exceptions").await?;
        assert_eq!(told, []);
        let _: u32 = manager.call("AddException", &lan(3600)).await?;
        let _: bool = manager.call("Unlock", &("a test",)).await?;
        assert_eq!(refusal(&manager, "AddException", &lan(60)).await, "NotLocked");
        let _: (bool, Vec<String>) = manager.call("Lock", &()).await?;
        Ok::<_, Failed>(())
    })?;
    is_closed(&stage)
}

fn at_once() -> Outcome {
    const ROUNDS: u32 = 40;
    let stage = Stage::set()?;
    let lan = capture_with_lan(&stage)?;
    runtime()?.block_on(async {
        let manager = manager().await?;
        for round in 0..ROUNDS {
            let network = format!("192.168.{}.0/24", 100 + round);
            let ask = async |network: &str| {
                let lan = ("lan", network, 3600_u32);
                if let Ok(id) = manager.call::<_, _, u32>("AddException", &lan).await
                    && id % 2 == 0
                {
                    let _ = manager.call_method("RemoveException", &(id,)).await;
                }
            };
            let change = async {
                let method = ["Lock", "Reload", "Reconnect", "Lock"][round as usize % 4];
                let _ = manager.call_method(method, &()).await;
            };
            // Not the LAN itself: nothing may leave to it all the while.
            tokio::join!(ask(&network), ask("192.168.9.0/24"), change, ask("192.168.10.0/24"));
        }
        let _ = manager.call_method("Lock", &()).await;
        let told: Told = manager.get_property("Exceptions").await?;
        assert_eq!(told, []);
        Ok::<_, Failed>(())
    })?;
    is_closed(&stage)?;
    let report = lan.take();
    assert_eq!(report.leaked_total(), 0, "{}", report.summary(5));
    stage.wait_for_traffic("all of it at once")?;
    is_closed(&stage)
}
