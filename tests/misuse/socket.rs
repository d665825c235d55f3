//! Root's own way in, misused by root: whoever talks nonsense there harms nobody but itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use killswitch::dbus::SOCKET;
use killswitch::lab::harness::{Outcome, eventually};

use crate::stage::{Stage, round_trip};
use crate::wire::{Wire, handshake, property};
use crate::wrong;

/// Served at the same time, each by two descriptors; the others wait.
const PEERS: usize = 64;
const CONNECTIONS: usize = 1000;

pub fn garbage_at_the_control_socket() -> Outcome {
    let mut stage = Stage::set()?;
    let (rules, before) = (stage.rules()?, stage.usage()?);
    let noise: Vec<u8> =
        (0..100_000u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let greeting = handshake();
    let beginnings = (0..greeting.len()).map(|length| &greeting[..length]);
    for words in beginnings.chain([
        &noise[..],
        b"\0AUTH ANONYMOUS\r\nBEGIN\r\n",
        b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ]) {
        let mut stream = UnixStream::connect(SOCKET)?;
        // It may hang up before all of it is written.
        let _ = stream.write_all(words);
    }
    // Who says that they are somebody else is not served.
    let mut liar = UnixStream::connect(SOCKET)?;
    liar.set_read_timeout(Some(Duration::from_secs(60)))?;
    liar.write_all(b"\0AUTH EXTERNAL 31303030\r\n")?;
    let mut answer = [0; 3];
    let _ = liar.read(&mut answer);
    assert_ne!(&answer, b"OK ");
    for message in wrong::unsound() {
        let mut wire = Wire::peer(SOCKET)?;
        let _ = wire.send(&message);
    }
    for _ in 0..20 {
        let mut wire = Wire::peer(SOCKET)?;
        let _ = wire.send(&noise);
    }
    // And one that has been served may go wrong as well.
    let mut wire = Wire::peer(SOCKET)?;
    wire.send(&property())?;
    assert!(wire.reply()?.is_return());
    let _ = wire.send(&noise);
    drop(wire);
    stage.recovers(before, 64 << 10)?;
    assert_eq!(stage.rules()?, rules);
    Ok(())
}

pub fn a_thousand_connections() -> Outcome {
    let mut stage = Stage::set()?;
    let (rules, before) = (stage.rules()?, stage.usage()?);
    let greeting = handshake();
    let mut all = Vec::new();
    for number in 0..CONNECTIONS {
        let stream = UnixStream::connect(SOCKET);
        let Ok(mut stream) = stream else { break };
        if number % 2 == 0 {
            stream.write_all(&greeting[..greeting.len() / 2])?;
        }
        all.push(stream);
    }
    // Those that say nothing are left, and the next ones come in.
    let most = stage.usage()?;
    println!("{} connections: {most:?}", all.len());
    assert!(most.descriptors <= before.descriptors + 2 * PEERS, "{most:?}");
    drop(all);
    eventually("root is answered", || Ok(round_trip().is_ok()))?;
    stage.recovers(before, 64 << 10)?;
    assert_eq!(stage.rules()?, rules);
    Ok(())
}
