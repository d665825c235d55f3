//! What the methods and properties answer, and the named errors.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Bus, Daemon, Lab, Result, setup};
use serde_json::Value;
use zbus::OwnedVariant;

use crate::caller::Caller;
use crate::stage::{PRESHARED_KEY, Stage, write_private};

pub const TESTS: &[Test] = &[
    ("status_and_explain_are_those_of_the_command_line", documents),
    ("properties_say_how_it_is", properties),
    ("what_the_kernel_counts_is_read_when_asked", counted),
    ("refusals_have_names", refusals),
    ("a_bad_configuration_is_not_quoted_on_the_bus", bad_configuration),
    ("an_external_tunnel_is_not_managed", external),
];

/// D-Bus has no null; counters and ages move between two readings.
fn lasting(value: Value) -> Value {
    const MOVING: [&str; 5] = ["last_handshake_age_s", "rx_bytes", "tx_bytes", "packets", "bytes"];
    match value {
        Value::Object(entries) => Value::Object(
            entries
                .into_iter()
                .filter(|(key, value)| !value.is_null() && !MOVING.contains(&key.as_str()))
                .map(|(key, value)| (key, lasting(value)))
                .collect(),
        ),
        Value::Array(values) => values.into_iter().map(lasting).collect(),
        other => other,
    }
}

fn documents() -> Outcome {
    let stage = Stage::set()?;
    let mut seen = (Value::Null, Value::Null);
    let same = eventually("Status is the document of the command line", || {
        let on_the_bus = stage.busctl(&["Status"])?[0].clone();
        seen = (lasting(on_the_bus), lasting(stage.ask(&["status"])?));
        Ok(seen.0 == seen.1)
    });
    same.map_err(|error| format!("{error}: {} {}", seen.0, seen.1))?;
    assert_eq!(seen.0["state"], "connected");
    assert_eq!(seen.0["tunnel"]["server"], "server1");

    let packets: [&[(&str, &str)]; 4] = [
        &[("out", "eth0"), ("to", "1.1.1.1"), ("proto", "udp"), ("port", "53")],
        &[("out", "wg0"), ("to", "1.1.1.1")],
        &[("in", "eth0"), ("to", "192.168.1.50"), ("reply", "true")],
        &[("out", "eth0"), ("to", "1.1.1.1"), ("frame", "true")],
    ];
    for packet in packets {
        let count = packet.len().to_string();
        let mut call = vec!["Explain", "a{ss}", &count];
        let mut line = vec!["explain".to_owned()];
        for &(option, value) in packet {
            call.extend([option, value]);
            line.push(format!("--{option}"));
            line.extend((value != "true").then(|| value.to_owned()));
        }
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        assert_eq!(stage.busctl(&call)?[0], lasting(stage.ask(&line)?), "{packet:?}");
    }
    Ok(())
}

type Servers = Vec<(String, Vec<String>, bool)>;

fn properties() -> Outcome {
    let stage = Stage::set()?;
    for caller in [&stage.caller, &Caller::at_the_socket()?] {
        assert_eq!(caller.property::<String>("State")?, "connected");
        assert_eq!(caller.property::<String>("Tunnel")?, "connected");
        assert!(caller.property::<bool>("Locked")?);
        assert!(caller.property::<bool>("Intact")?);
        assert_eq!(caller.property::<String>("Server")?, "server1");
        let endpoints = [stage.lab.servers[0].endpoint_v4, stage.lab.servers[0].endpoint_v6];
        let endpoint: String = caller.property("Endpoint")?;
        assert!(endpoints.map(|it| it.to_string()).contains(&endpoint), "{endpoint}");
        assert_eq!(caller.property::<Vec<String>>("Degraded")?, Vec::<String>::new());
        let file: String = caller.property("ConfigurationFile")?;
        assert_eq!(file, stage.configuration.display().to_string());
        assert_eq!(caller.property::<String>("Version")?, env!("CARGO_PKG_VERSION"));
        let servers: Servers = caller.call("ListServers", &())?;
        let expected = |index: usize| {
            let server = &stage.lab.servers[index];
            let endpoints = [server.endpoint_v4, server.endpoint_v6].map(|it| it.to_string());
            (server.host.name().to_owned(), endpoints.to_vec(), index == 0)
        };
        let nowhere = ("nowhere".to_owned(), vec!["198.51.100.66:51820".to_owned()], false);
        assert_eq!(servers, [expected(0), expected(1), nowhere]);
    }
    let all: BTreeMap<String, OwnedVariant> = stage.caller.call_of(
        "org.freedesktop.DBus.Properties",
        "GetAll",
        &killswitch::dbus::INTERFACE,
    )?;
    let known = include_str!("../../packaging/dbus/org.killswitch1.Manager.xml");
    let known: BTreeSet<&str> =
        known.split("<property name=\"").skip(1).filter_map(|it| it.split('"').next()).collect();
    assert_eq!(all.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
    Ok(())
}

fn counted() -> Outcome {
    let stage = Stage::set()?;
    let caller = &stage.caller;
    let handshake = Duration::from_micros(caller.property("LastHandshake")?);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + handshake)?;
    // It is as old as this test at most, and that took less than half an hour.
    assert!(age < Duration::from_secs(1800), "{age:?}");
    let told = stage.ask(&["status"])?["tunnel"]["last_handshake_age_s"].as_u64();
    let told = Duration::from_secs(told.ok_or("no handshake")?);
    assert!(told.abs_diff(age) < Duration::from_secs(60), "{told:?} {age:?}");

    let before: u64 = caller.property("DroppedPackets")?;
    let socket = PacketSocket::open(&stage.lab.client, CLIENT_LINK)?;
    for port in 1..=10 {
        assert!(socket.send(&datagram(port)).is_err(), "not blocked");
    }
    let after: u64 = caller.property("DroppedPackets")?;
    assert!(after >= before + 10, "{before} {after}");
    let sum: u64 = sum(&stage.ask(&["status"])?["dropped"]);
    assert!(sum >= after, "{sum} {after}");

    caller.call::<_, ()>("Disconnect", &())?;
    eventually("no tunnel, no handshake", || {
        Ok(caller.property::<u64>("LastHandshake").is_ok_and(|it| it == 0))
    })?;
    Ok(())
}

fn sum(dropped: &Value) -> u64 {
    let chains = dropped.as_object().into_iter().flat_map(|it| it.values());
    let reasons = chains.filter_map(Value::as_object).flat_map(|it| it.values());
    reasons.filter_map(|it| it["packets"].as_u64()).sum()
}

/// A whole frame: a UDP datagram from the client to the Internet.
pub fn datagram(port: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x08, 0x00]);
    // RFC 791; nobody checks the sum on the way out.
    frame.extend([0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(CLIENT_V4.octets());
    frame.extend(INTERNET_V4.octets());
    frame.extend(40000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 13, 0, 0]);
    frame.extend(b"hello");
    frame.resize(60, 0);
    frame
}

fn refused<B>(caller: &Caller, error: &str, method: &str, arguments: &B) -> Result<String>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let (name, words) = caller.refusal(method, arguments)?;
    assert_eq!(name, error, "{method}: {words}");
    Ok(words)
}

fn refusals() -> Outcome {
    let stage = Stage::set()?;
    for caller in [&stage.caller, &Caller::at_the_socket()?] {
        let unknown = "org.killswitch1.Error.UnknownServer";
        let words = refused(caller, unknown, "Connect", &"paris")?;
        assert!(words.contains("server1, server2, nowhere"), "{words}");
        let invalid = "org.killswitch1.Error.InvalidArgument";
        refused(caller, invalid, "Unlock", &"one line\nand another")?;
        refused(caller, invalid, "Unlock", &"x".repeat(1001))?;
        for packet in [
            BTreeMap::from([("colour", "red")]),
            BTreeMap::from([("to", "nowhere")]),
            BTreeMap::from([("proto", "udp"), ("port", "65536")]),
            BTreeMap::from([("", "")]),
        ] {
            refused(caller, invalid, "Explain", &packet)?;
        }
        // Of the wrong type, and unknown: the bus' own names.
        let (name, _) = caller.refusal("Connect", &7_u32)?;
        assert!(name.starts_with("org.freedesktop.DBus.Error."), "{name}");
        let (name, _) = caller.refusal("Dance", &())?;
        assert_eq!(name, "org.freedesktop.DBus.Error.UnknownMethod");
    }
    assert_eq!(stage.caller.property::<String>("State")?, "connected");
    Ok(())
}

/// Only whoever may read the file anyway is told what is in it.
fn bad_configuration() -> Outcome {
    let stage = Stage::set()?;
    let name = "org.killswitch1.Error.BadConfiguration";
    let good = std::fs::read_to_string(&stage.configuration)?;
    for bad in [
        format!("{good}\n[allow]\nsurprise = \"{PRESHARED_KEY}\"\n"),
        format!("{good}\n[surprise]\n"),
        format!("{good}\nsurprise"),
    ] {
        write_private(&stage.configuration, &bad)?;
        let words = refused(&stage.caller, name, "Reload", &())?;
        assert!(!words.contains("surprise") && !words.contains(PRESHARED_KEY), "{words}");
        assert!(words.contains("killswitch check"), "{words}");
        let root = Caller::at_the_socket()?;
        let words = refused(&root, name, "Reload", &())?;
        assert!(words.contains("surprise"), "{words}");
        assert_eq!(stage.caller.property::<String>("State")?, "connected");
    }
    write_private(&stage.configuration, &good)?;
    stage.caller.call::<_, (bool, Vec<String>)>("Reload", &())?;
    eventually("Reloaded is told", || Ok(!stage.caller.signals::<()>("Reloaded")?.is_empty()))?;
    Ok(())
}

fn external() -> Outcome {
    let lab = Lab::new()?;
    let configuration = setup::write_configuration(&lab, "")?;
    let server: Ipv4Addr = SERVER1_V4;
    let text = format!(
        "[tunnel]\nkind = \"external\"\ninterface = \"{TUNNEL_LINK}\"\n\
         addresses = [\"{TUNNEL_V4}/32\"]\n\
         [[server]]\nname = \"server1\"\nendpoints = [\"{server}:{SERVER_PORT}\"]\n"
    );
    write_private(&configuration, &text)?;
    let _bus = Bus::start(&lab.client)?;
    let _daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
    let caller = Caller::on_the_bus()?;
    eventually("the daemon is on the bus", || Ok(caller.property::<String>("State").is_ok()))?;
    let name = "org.killswitch1.Error.NotManaged";
    refused(&caller, name, "Connect", &"")?;
    refused(&caller, name, "Connect", &"server1")?;
    refused(&caller, name, "Disconnect", &())?;
    refused(&caller, name, "Reconnect", &())?;
    assert_eq!(caller.property::<String>("State")?, "blocked");
    Ok(())
}
