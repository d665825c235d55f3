//! No key is ever on the bus.

use std::fs::File;
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Result, setup};

use crate::answers::datagram;
use crate::stage::{PRESHARED_KEY, Stage, write_private};

pub const TESTS: &[Test] = &[("no_key_is_on_the_bus", no_key)];

/// `dbus-monitor` writes every message of the bus there, as it is.
const CAPTURE: &str = "/run/killswitch-test-messages";

/// A key as it is, in base64 (also without its padding), and in hexadecimal.
fn spellings(key: &str) -> Result<Vec<Vec<u8>>> {
    let bytes = Base64::decode_vec(key).map_err(|error| error.to_string()).during("a key")?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let upper = hex.to_uppercase();
    let base64 = key.trim_end_matches('=');
    Ok(vec![bytes, base64.into(), hex.into(), upper.into()])
}

fn holds(messages: &[u8], needle: &[u8]) -> bool {
    messages.windows(needle.len()).any(|window| window == needle)
}

fn captured() -> Result<Vec<u8>> {
    std::fs::read(CAPTURE).during(CAPTURE)
}

fn no_key() -> Outcome {
    let stage = Stage::set()?;
    let mut command = Command::new("dbus-monitor");
    command.args(["--system", "--binary"]).stdin(Stdio::null()).stdout(File::create(CAPTURE)?);
    let _monitor = stage.lab.client.start(command)?;
    let keys = [stage.lab.client_keys.private_text().to_string(), PRESHARED_KEY.to_owned()];
    let keys = keys.iter().map(|key| spellings(key)).collect::<Result<Vec<_>>>()?.concat();

    // The control: another program says all of it.
    eventually("what is on the bus is captured, and found", || {
        for key in &keys {
            stage.caller.say("Control", key).during("the control")?;
        }
        let messages = captured()?;
        Ok(keys.iter().all(|key| holds(&messages, key)))
    })?;
    stage.caller.say("Begin", &"the-control-is-over")?;
    let over = b"the-control-is-over";
    eventually("the control ends", || Ok(holds(&captured()?, over)))?;
    let begin = captured()?;
    let begin = begin.windows(over.len()).rposition(|it| it == over).ok_or("no begin")?;

    everything(&stage)?;

    stage.caller.say("End", &"this-is-the-end")?;
    eventually("all is captured", || Ok(holds(&captured()?, b"this-is-the-end")))?;
    let messages = captured()?.split_off(begin);
    for seen in ["StateChanged", "PropertiesChanged", "LeakBlocked", "Tampered", "nowhere"] {
        assert!(holds(&messages, seen.as_bytes()), "{seen} is not in what was captured");
    }
    assert!(!keys.iter().any(|key| holds(&messages, key)), "a key is on the bus");
    Ok(())
}

/// All that can be asked, and all that is told.
fn everything(stage: &Stage) -> Outcome {
    let caller = &stage.caller;
    let manager = "org.killswitch1.Manager";
    let object = ["org.killswitch1", "/org/killswitch1"];
    let client = &stage.lab.client;
    client.command("busctl", &[&["introspect"][..], &object, &[manager]].concat())?;
    for method in ["Status", "ListServers", "Lock", "Reload", "Reconnect"] {
        stage.busctl(&[method])?;
    }
    stage.busctl(&["Explain", "a{ss}", "2", "out", "eth0", "to", "1.1.1.1"])?;
    // Its peer has the preshared key.
    stage.busctl(&["Connect", "s", "nowhere"])?;
    eventually("its server is set", || {
        let endpoint = client.output("wg", &["show", TUNNEL_LINK, "preshared-keys"])?;
        Ok(holds(&endpoint.stdout, PRESHARED_KEY.as_bytes()))
    })?;
    stage.busctl(&["Status"])?;
    stage.busctl(&["Connect", "s", "server2"])?;
    stage.wait_for("Server", "server2")?;
    stage.wait_for("State", "connected")?;
    stage.busctl(&["Disconnect"])?;
    stage.wait_for("State", "blocked")?;

    // Without its program the link cannot be made: what fails is told in words.
    let program = setup::wireguard()?;
    let away = program.with_extension("away");
    std::fs::rename(&program, &away)?;
    stage.busctl(&["Connect", "s", ""])?;
    eventually("Failed is signalled", || {
        Ok(!caller.signals::<(String, String)>("Failed").unwrap_or_default().is_empty())
    })?;
    std::fs::rename(&away, &program)?;
    stage.wait_for("State", "connected")?;

    client.ip("rule delete pref 27590")?;
    assert!(PacketSocket::open(client, CLIENT_LINK)?.send(&datagram(4433)).is_err());
    eventually("both are signalled", || {
        let told = |member: &str| client_heard(stage, member);
        Ok(told("LeakBlocked") && told("Repaired"))
    })?;

    let good = std::fs::read_to_string(&stage.configuration)?;
    let private = stage.lab.client_keys.private_text().to_string();
    for bad in [
        format!("{good}\n[allow]\nsurprise = \"{private}\"\n"),
        good.replace("private_key_file = \"", &format!("private_key_file = \"{private}")),
        good.replace("name = \"nowhere\"", &format!("name = \"{PRESHARED_KEY}\nx")),
        format!("{good}\n{PRESHARED_KEY}"),
    ] {
        assert_ne!(bad, good);
        write_private(&stage.configuration, &bad)?;
        assert!(stage.busctl(&["Reload"]).is_err());
    }
    write_private(&stage.configuration, &good)?;
    stage.busctl(&["Reload"])?;
    stage.busctl(&["Unlock", "s", "a test"])?;
    stage.busctl(&["Lock"])?;
    Ok(())
}

fn client_heard(stage: &Stage, member: &str) -> bool {
    match member {
        "Repaired" => !stage.caller.signals::<u64>(member).unwrap_or_default().is_empty(),
        _ => {
            type Packet = std::collections::BTreeMap<String, zbus::OwnedVariant>;
            !stage.caller.signals::<Packet>(member).unwrap_or_default().is_empty()
        }
    }
}
