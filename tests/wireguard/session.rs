//! Peers, probes and the alarm.

use std::time::Duration;

use killswitch::engine::Candidate;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Context, Error, Result, setup};
use killswitch::netlink::{Family, Socket};
use killswitch::routing;
use killswitch::wireguard::{Device, TrafficAlarm};

use crate::tunnel::Tunnel;

/// When the first server last shook hands.
fn since_handshake(tunnel: &Tunnel, server: usize) -> Result<Option<Duration>> {
    let running = tunnel.lab.servers[server].running().ok_or_else(|| Error::new("no server"))?;
    Ok(running.transfer()?.since_handshake)
}

pub fn each_setting_of_a_peer_is_a_new_session() -> Outcome {
    let tunnel = Tunnel::connected()?;
    let candidates = [
        Candidate { server: 0, endpoint: tunnel.lab.servers[0].endpoint_v6 },
        Candidate { server: 1, endpoint: tunnel.lab.servers[1].endpoint_v4 },
        Candidate { server: 1, endpoint: tunnel.lab.servers[1].endpoint_v6 },
        tunnel.first(),
        tunnel.first(),
    ];
    for candidate in candidates {
        std::thread::sleep(Duration::from_millis(100));
        tunnel.ask(|device| device.set_peer(candidate))?;
        // A new peer has no past.
        eventually("a session", || Ok(tunnel.read()?.handshake_age.is_some()))?;
        let reading = tunnel.read()?;
        assert_eq!(reading.candidate, Some(candidate));
        assert_eq!(tunnel.wg("peers")?.lines().count(), 1);
        assert!(reading.received > 0 && reading.received < 1000, "{reading:?}");
    }
    assert_eq!(tunnel.wg("persistent-keepalive")?.split('\t').next_back(), Some("25"));
    assert!(tunnel.wg("allowed-ips")?.contains("0.0.0.0/0 ::/0"));
    Ok(())
}

pub fn a_peer_that_is_not_configured_is_no_candidate() -> Outcome {
    let tunnel = Tunnel::new()?;
    tunnel.ensure()?;
    assert_eq!(tunnel.read()?.candidate, None);
    tunnel.connect(tunnel.first())?;
    let peer = tunnel.lab.servers[0].keys.public_text();
    let wg = |words: &[&str]| {
        tunnel.lab.client.command("wg", &[&["set", TUNNEL_LINK, "peer"], words].concat())
    };
    wg(&[&peer, "endpoint", "198.51.100.99:1"])?;
    assert_eq!(tunnel.read()?.candidate, None);
    wg(&[&peer, "endpoint", &tunnel.first().endpoint.to_string()])?;
    assert_eq!(tunnel.read()?.candidate, Some(tunnel.first()));
    // A second one.
    wg(&[&tunnel.lab.servers[1].keys.public_text(), "endpoint", "198.51.100.135:51820"])?;
    assert_eq!(tunnel.read()?.candidate, None);
    std::thread::sleep(Duration::from_millis(100));
    tunnel.connect(tunnel.first())?;
    assert_eq!(tunnel.read()?.candidate, Some(tunnel.first()));
    Ok(())
}

pub fn a_handshake_begins_without_keepalives() -> Outcome {
    let tunnel = Tunnel::with(|config| {
        config.servers.iter_mut().for_each(|server| server.persistent_keepalive = None);
    })?;
    tunnel.ensure()?;
    assert_eq!(since_handshake(&tunnel, 0)?, None);
    tunnel.connect(tunnel.first())?;
    eventually("the server has it, too", || Ok(since_handshake(&tunnel, 0)?.is_some()))?;
    Ok(())
}

/// The server's answer, seen as growth. Its own keepalive comes 10 s after what it does not answer.
fn probe_is_answered(tunnel: &Tunnel) -> Result<()> {
    let before = tunnel.read()?.received;
    let start = std::time::Instant::now();
    tunnel.ask(Device::probe)?;
    eventually("an answer", || Ok(tunnel.read()?.received > before))?;
    println!("answered within {:?}", start.elapsed());
    if start.elapsed() > Duration::from_secs(8) {
        return Err(Error::new("the answer was a keepalive"));
    }
    Ok(())
}

pub fn a_living_server_answers_a_probe() -> Outcome {
    for (version, dns) in [(4, None), (6, None), (4, Some(TUNNEL_GATEWAY_V4.into()))] {
        let tunnel = Tunnel::with(|config| {
            config.tunnel.addresses.retain(|net| net.addr().is_ipv4() == (version == 4));
            config.tunnel.dns = dns.into_iter().collect();
        })?;
        tunnel.ensure()?;
        tunnel.route()?;
        tunnel.connect(tunnel.first())?;
        let counter = "table inet beyond {
            chain seen {
                type filter hook prerouting priority 0
                udp dport 33434 counter
            }
        }";
        tunnel.lab.internet.feed("nft", &["-f", "-"], counter)?;
        let beyond = || tunnel.lab.internet.command("nft", &["list", "table", "inet", "beyond"]);
        for _ in 0..2 {
            // That of the peer's setting is answered first; the kernel limits such answers.
            std::thread::sleep(Duration::from_millis(1500));
            probe_is_answered(&tunnel)?;
        }
        let counted = beyond()?;
        assert!(counted.contains("packets 0"), "{counted}");
        // The same without the limit does arrive.
        let (source, far) = match version {
            4 => (TUNNEL_V4.into(), (INTERNET_V4, 33434).into()),
            _ => (TUNNEL_V6.into(), (INTERNET_V6, 33434).into()),
        };
        tunnel.send(source, far)?;
        eventually("what is no probe is seen beyond the server", || {
            Ok(beyond()?.contains("packets 1"))
        })?;
    }
    Ok(())
}

pub fn a_dead_server_answers_no_probe() -> Outcome {
    let mut tunnel = Tunnel::connected()?;
    std::thread::sleep(Duration::from_millis(500));
    tunnel.lab.stop_server(0);
    let before = tunnel.read()?.received;
    tunnel.ask(Device::probe)?;
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(tunnel.read()?.received, before);
    Ok(())
}

pub fn the_lock_lets_a_probe_through() -> Outcome {
    let tunnel = Tunnel::new()?;
    let file = setup::write_configuration(&tunnel.lab, "")?;
    let output = setup::killswitch(&tunnel.lab, &setup::program()?, &file, &["lock"])?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let link = tunnel.ensure()?;
    tunnel
        .lab
        .client
        .run(|| -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let socket = Socket::open(Family::Route)?;
            for destination in ["0.0.0.0/0", "::/0"] {
                routing::add_tunnel_route(&socket, link.index, destination.parse()?)?;
            }
            Ok(())
        })?
        .during("routes")?;
    tunnel.connect(tunnel.first())?;
    std::thread::sleep(Duration::from_millis(1500));
    probe_is_answered(&tunnel)?;
    tunnel.ping("1.1.1.1")?;
    Ok(())
}

/// Runs the future in the client.
fn in_client<T: Send>(
    tunnel: &Tunnel,
    work: impl Future<Output = std::io::Result<T>> + Send,
) -> Result<T> {
    tunnel
        .lab
        .client
        .run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))?
        .during("the alarm")
}

pub fn the_alarm_tells_of_traffic_once_and_not_of_keepalives() -> Outcome {
    let tunnel = Tunnel::with(|config| config.servers[0].persistent_keepalive = Some(1))?;
    let link = tunnel.ensure()?.index;
    tunnel.connect(tunnel.first())?;
    std::thread::sleep(Duration::from_millis(500));
    let before = tunnel.read()?;
    let other = || tunnel.lab.client.command("ping", &["-c1", "-W5", "192.168.1.1"]);
    in_client(&tunnel, async {
        let alarm = TrafficAlarm::set(link)?;
        let silent = tokio::time::timeout(Duration::from_secs(4), alarm.sent()).await;
        if silent.is_ok() {
            return Err(std::io::Error::other("it went off by itself"));
        }
        other().map_err(std::io::Error::other)?;
        let silent = tokio::time::timeout(Duration::from_millis(300), alarm.sent()).await;
        if silent.is_ok() {
            return Err(std::io::Error::other("it went off for another link"));
        }
        tunnel.send(TUNNEL_V4.into(), (INTERNET_V4, 7).into()).map_err(std::io::Error::other)?;
        tokio::time::timeout(Duration::from_secs(20), alarm.sent()).await??;
        Ok(())
    })?;
    let after = tunnel.read()?;
    if after.sent < before.sent + 3 * 32 {
        return Err(format!("no keepalives were sent: {before:?} {after:?}").into());
    }
    // Gone with the alarm.
    let sockets = tunnel.lab.client.command("cat", &["/proc/net/packet"])?;
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    Ok(())
}
