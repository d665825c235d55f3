//! Wrong types and lengths, unknown members and paths, and bodies that contradict their signature.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;

use killswitch::dbus::{INTERFACE, NAME, PATH};
use killswitch::lab::harness::Outcome;

use crate::bus;
use crate::callers::{self, Done};
use crate::stage::Stage;
use crate::wire::{Wire, bytes, ours, to};

/// Of Status and ListServers, which take nothing and are open to everybody, nobody looks at what they
/// are called with.
const METHODS: [&str; 7] =
    ["Lock", "Unlock", "Reload", "Connect", "Disconnect", "Reconnect", "Explain"];
/// That take a string: what they are called with is never one.
const WITH_TEXT: [&str; 2] = ["Unlock", "Connect"];

pub fn wrong_calls_change_nothing() -> Outcome {
    if !callers::can_be_others() {
        return Ok(());
    }
    let mut stage = Stage::set()?;
    let (rules, before) = (stage.rules()?, stage.usage()?);
    let output = callers::command("wrong calls").stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    stage.recovers(before, 32 << 10)?;
    assert_eq!(stage.rules()?, rules);
    Ok(())
}

/// Each call gets an error, or ends its connection; none is done.
pub fn call_wrongly() -> Done {
    for message in messages() {
        let mut wire = Wire::bus(bus::SOCKET)?;
        match wire.send(&message).and_then(|()| wire.reply()) {
            Ok(answer) if answer.is_return() => {
                return Err(format!(
                    "done: {:?}",
                    String::from_utf8_lossy(&message[..200.min(message.len())])
                )
                .into());
            }
            Ok(_) => {}
            // The bus does not pass it on.
            Err(error) if ended(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// None of them may do anything, by whomever it is sent.
pub fn messages() -> Vec<Vec<u8>> {
    let mut all = wrong_types();
    all.extend(unknown());
    all.extend(extremes());
    all.extend(contradictions("Unlock"));
    all
}

fn wrong_types() -> Vec<Vec<u8>> {
    let deep: Vec<Vec<Vec<Vec<u8>>>> = vec![vec![vec![vec![1; 100]; 10]; 10]; 10];
    let mut all = Vec::new();
    for method in METHODS {
        // Those that take nothing get something; a dictionary of numbers is not one of text.
        all.push(bytes(ours(method), &(7u32, 8u64)));
        all.push(bytes(ours(method), &-1i64));
        all.push(bytes(ours(method), &deep));
        all.push(bytes(ours(method), &BTreeMap::from([("uid", 0u32)])));
        all.push(bytes(ours(method), &("text", 1u8, vec!["more"; 100])));
    }
    all.extend(WITH_TEXT.map(|method| bytes(ours(method), &())));
    all.push(bytes(ours("Explain"), &()));
    // Whoever says that they are root is not.
    all.push(bytes(ours("Unlock"), &"uid=0"));
    all
}

fn unknown() -> Vec<Vec<u8>> {
    let properties = "org.freedesktop.DBus.Properties";
    let locked = (INTERFACE, "Locked", zbus::Variant::from(false));
    vec![
        bytes(ours("Nothing"), &()),
        bytes(ours("unlock"), &"x"),
        bytes(to(NAME, "/", INTERFACE, "Unlock"), &"x"),
        bytes(to(NAME, "/org/killswitch1/more", INTERFACE, "Unlock"), &"x"),
        bytes(to(NAME, "/org", INTERFACE, "Unlock"), &"x"),
        bytes(to(NAME, PATH, "org.killswitch1.Other", "Unlock"), &"x"),
        bytes(to(NAME, PATH, "org.killswitch2.Manager", "Unlock"), &"x"),
        bytes(to(NAME, PATH, properties, "Get"), &(INTERFACE, "Nothing")),
        bytes(to(NAME, PATH, properties, "Get"), &("no.such", "Locked")),
        bytes(to(NAME, PATH, properties, "Get"), &INTERFACE),
        // Nothing can be set.
        bytes(to(NAME, PATH, properties, "Set"), &locked),
        bytes(to(NAME, PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"), &()),
    ]
}

fn extremes() -> Vec<Vec<u8>> {
    let long = "x".repeat(1 << 20);
    let many: BTreeMap<String, String> =
        (0..100_000).map(|it| (it.to_string(), "x".to_owned())).collect();
    vec![
        bytes(ours("Unlock"), &long),
        bytes(ours("Unlock"), &"two\nlines"),
        bytes(ours("Connect"), &long),
        bytes(ours("Explain"), &many),
        bytes(ours("Explain"), &BTreeMap::from([("port", long.as_str())])),
        bytes(ours("Explain"), &BTreeMap::from([("to", "1.1.1.1/0"), ("port", "-1")])),
        bytes(ours("Lock"), &vec![0u64; 1 << 20]),
    ]
}

/// Messages whose bytes are not what they say.
fn contradictions(method: &str) -> Vec<Vec<u8>> {
    let sound = bytes(ours(method), &"reason");
    let mut all = Vec::new();
    // A string that is longer than the message, without its end, or not UTF-8.
    let body = sound.len() - "reason".len() - 1 - 4;
    for (at, value) in [(body, 0xff), (body + 3, 0x7f), (sound.len() - 1, b'x'), (body + 4, 0xff)] {
        let mut message = sound.clone();
        message[at] = value;
        all.push(message);
    }
    // Another type in the signature: of a descriptor, a variant, an array, a structure, none.
    let signature = sound.windows(3).position(|it| it == [1, b's', 0]).map(|it| it + 1);
    for kind in [b'h', b'v', b'a', b'(', b'u', b'd', b'z'] {
        let mut message = sound.clone();
        if let Some(at) = signature {
            message[at] = kind;
        }
        all.push(message);
    }
    all.extend(flipped(&sound));
    all
}

/// Every byte before the body changed, one after the other: kinds, versions, lengths, fields.
fn flipped(sound: &[u8]) -> Vec<Vec<u8>> {
    // Another kind gets no answer, nor does a flag ask for one; a serial is anybody's. The higher
    // bytes of the two lengths would have everybody wait for the rest of the message.
    const LEFT_OUT: [usize; 10] = [1, 2, 5, 6, 8, 9, 10, 11, 13, 14];
    let head = sound.len() - "reason".len() - 1 - 4;
    let flip = |at: usize| {
        let mut message = sound.to_vec();
        message[at] ^= 0x55;
        // The rest that is missing by a lower byte.
        message.resize(message.len() + 4096, 0);
        message
    };
    (0..head).filter(|at| !LEFT_OUT.contains(at)).map(flip).collect()
}

/// Those that nobody could do, not even root.
pub fn unsound() -> Vec<Vec<u8>> {
    let mut all = unknown();
    // A change may be one that nobody looks at.
    all.extend(contradictions("Nothing"));
    all
}
