//! What the edge costs; prints and judges nothing but that it works.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use killswitch::lab::Context;
use killswitch::lab::harness::Outcome;
use killswitch::wireguard::{Device, TrafficAlarm};

use crate::tunnel::Tunnel;

pub fn what_it_costs() -> Outcome {
    let tunnel = Tunnel::connected()?;
    let link = tunnel.ask(Device::link)?.1.ok_or("no link")?;
    for (what, work) in [
        ("ensure_link, nothing to do", (|it| it.ensure_link().map(drop)) as fn(&Device) -> _),
        ("link", |it| it.link().map(drop)),
        ("read", |it| it.read().map(drop)),
        ("probe", |it| it.probe()),
    ] {
        let took = tunnel.ask(|device| {
            let start = Instant::now();
            (0..200).try_for_each(|_| work(device)).map(|()| start.elapsed() / 200)
        })?;
        println!("{what}: {took:?}");
    }
    let start = Instant::now();
    tunnel.ask(Device::remove_link)?;
    println!("remove_link: {:?}", start.elapsed());
    let start = Instant::now();
    let link_again = tunnel.ensure()?.index;
    println!("ensure_link from nothing: {:?}", start.elapsed());
    let start = Instant::now();
    tunnel.ask(|device| device.set_peer(tunnel.first()))?;
    while tunnel.read()?.handshake_age.is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    println!("set_peer to handshake: {:?}", start.elapsed());
    assert_ne!(link, link_again);
    alarm(&tunnel, link_again)
}

/// Each packet over loopback passes the filter twice, out and in.
fn alarm(tunnel: &Tunnel, link: u32) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let send = || -> std::io::Result<Duration> {
        const PACKETS: u32 = 200_000;
        let (socket, sink) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        let start = Instant::now();
        for _ in 0..PACKETS {
            socket.send_to(&[0; 64], sink.local_addr()?)?;
        }
        Ok(start.elapsed() / PACKETS)
    };
    let measure = || -> std::io::Result<()> {
        let _inside = runtime.enter();
        for round in 0..4 {
            let before = send()?;
            let start = Instant::now();
            let alarm = TrafficAlarm::set(link)?;
            let set = start.elapsed();
            let during = send()?;
            let start = Instant::now();
            drop(alarm);
            let dropped = start.elapsed();
            std::thread::sleep(Duration::from_millis(100));
            let after = send()?;
            println!(
                "{round}: a packet over lo {before:?} before, {during:?} while set, {after:?} \
                 after; setting {set:?}, dropping {dropped:?}"
            );
        }
        Ok(())
    };
    tunnel.lab.client.run(measure)?.during("the alarm")?;
    Ok(())
}
