//! The examples of docs/dbus.md, as they stand there, against the real daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::host::Process;
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Context, Error, Result, setup};

use crate::answers::datagram;
use crate::stage::{Stage, words};

pub const TESTS: &[Test] = &[("examples_do_what_they_say", examples)];

const DOCUMENT: &str = include_str!("../../docs/dbus.md");
const DIRECTORY: &str = "/run/killswitch-test-examples";

/// By language and name: "sh wait".
fn blocks() -> BTreeMap<&'static str, &'static str> {
    let fenced = DOCUMENT.split("\n```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

struct Examples {
    stage: Stage,
    blocks: BTreeMap<&'static str, &'static str>,
    ran: BTreeSet<&'static str>,
}

impl Examples {
    /// In the client, as it stands.
    fn command(&mut self, name: &'static str) -> Result<Command> {
        let text = self.blocks.get(name).ok_or_else(|| Error::new(format!("no example {name}")))?;
        self.ran.insert(name);
        let (language, _) = name.split_once(' ').unwrap_or((name, ""));
        let file = format!("{DIRECTORY}/{}", name.replace(' ', "-"));
        std::fs::write(&file, text).during(&file)?;
        let mut command = match language {
            "python" => Command::new("/usr/bin/python3"),
            _ => {
                let mut shell = Command::new("sh");
                shell.arg("-e");
                shell
            }
        };
        // The installed program and the desktop's are found here.
        command.arg(file).env("PATH", format!("{DIRECTORY}:/usr/bin:/bin:/usr/sbin:/sbin"));
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// What it prints, in the end.
    fn run(&mut self, name: &'static str) -> Result<String> {
        let mut command = self.command(name)?;
        let output = self.stage.lab.client.run(|| command.output())?.during(name)?;
        match output.status.success() {
            true => Ok(words(&output)),
            false => Err(Error::new(format!("{name}: {}", words(&output)))),
        }
    }

    /// One that goes on and on.
    fn start(&mut self, name: &'static str) -> Result<Running> {
        let file = format!("{DIRECTORY}/{}.log", name.replace(' ', "-"));
        let mut command = self.command(name)?;
        let log = std::fs::File::create(&file).during(&file)?;
        // A pipeline ends with its shell.
        command.stderr(log.try_clone().during(&file)?).stdout(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Running { process: self.stage.lab.client.start(command)?, file })
    }
}

/// Killed when dropped, with all its children.
struct Running {
    process: Process,
    file: String,
}

impl Running {
    fn said(&self, what: &str) -> bool {
        std::fs::read_to_string(&self.file).is_ok_and(|text| text.contains(what))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        let group = nix::unistd::Pid::from_raw(self.process.child().id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
    }
}

fn set() -> Result<Examples> {
    std::fs::create_dir_all(DIRECTORY).during(DIRECTORY)?;
    let program = |name: &str, text: &str| -> Result<()> {
        let path = Path::new(DIRECTORY).join(name);
        std::fs::write(&path, text).during(name)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).during(name)
    };
    let stage = Stage::set()?;
    let (killswitch, configuration) = (setup::program()?, stage.configuration.display());
    let ours =
        format!("#!/bin/sh\nexec {} --config {configuration} \"$@\"\n", killswitch.display());
    program("killswitch", &ours)?;
    program("notify-send", &format!("#!/bin/sh\necho \"$@\" >>{DIRECTORY}/notifications\n"))?;
    Ok(Examples { stage, blocks: blocks(), ran: BTreeSet::new() })
}

fn examples() -> Outcome {
    let mut all = set()?;
    looking(&mut all)?;
    acting(&mut all)?;
    following(&mut all)?;
    let known: BTreeSet<&str> = all.blocks.keys().copied().collect();
    assert_eq!(all.ran, known, "an example that is not run");
    Ok(())
}

fn looking(all: &mut Examples) -> Outcome {
    let text = all.run("sh introspect")?;
    for member in [".Unlock", ".LeakBlocked", ".State "] {
        assert!(text.contains(member), "{member}: {text}");
    }
    assert_eq!(all.run("sh properties")?, "s \"connected\"\ns \"server1\"\nas 0");
    let text = all.run("sh documents")?;
    assert!(text.contains("\"intact\"") && text.contains("\"verdict\""), "{text}");
    let text = all.run("python act")?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "connected");
    assert!(lines[1].starts_with("* server1 198.51.100.7:51820"), "{text}");
    assert!(lines[2].starts_with("  server2 "), "{text}");
    assert!(lines.contains(&"org.killswitch1.Error.UnknownServer"), "{text}");
    assert!(text.contains("there is no server \"server9\""), "{text}");
    Ok(())
}

fn acting(all: &mut Examples) -> Outcome {
    all.stage.caller.call::<_, ()>("Disconnect", &())?;
    all.stage.wait_for("Tunnel", "off")?;
    let waiting = all.start("sh wait")?;
    assert!(!waiting.said("connected"));
    all.run("sh call")?;
    eventually("the wait is over", || Ok(waiting.said("connected")))?;
    all.stage.wait_for("Server", "server2")?;

    let text = all.run("sh gdbus")?;
    assert!(text.contains("('server2', ['198.51.100.135:51820',"), "{text}");
    assert!(text.contains("(true,)"), "{text}");
    all.stage.wait_for("State", "open")?;
    all.run("sh lock")?;
    eventually("it is locked", || Ok(all.stage.caller.property("Locked").unwrap_or(false)))?;
    Ok(())
}

fn following(all: &mut Examples) -> Outcome {
    let names =
        ["sh busctl-monitor", "sh gdbus-monitor", "sh follow", "sh notify", "python follow"];
    let mut running = Vec::new();
    for name in names {
        running.push(all.start(name)?);
    }
    let [busctl, gdbus, follow, _notify, python] = running.as_slice() else {
        return Err("not all run".into());
    };
    let caller = &all.stage.caller;
    // They may not listen yet: what they are to be told of is done until they have been.
    eventually("changes of state are followed", || {
        let _ = caller.call::<_, ()>("Disconnect", &());
        all.stage.wait_for("State", "blocked")?;
        let _ = caller.call::<_, ()>("Connect", &"");
        all.stage.wait_for("State", "connected")?;
        Ok(busctl.said("Member=StateChanged")
            && gdbus.said("org.killswitch1.Manager.StateChanged ('blocked', ")
            && follow.said("locked, no tunnel")
            && follow.said("through the tunnel")
            && python.said("State is now connected"))
    })?;
    let socket = PacketSocket::open(&all.stage.lab.client, CLIENT_LINK)?;
    let notified = |what: &str| {
        std::fs::read_to_string(format!("{DIRECTORY}/notifications"))
            .is_ok_and(|text| text.contains(what))
    };
    // What was told just now is not told again.
    let mut port = 1000;
    eventually("what is blocked and changed is notified", || {
        port += 1;
        assert!(socket.send(&datagram(port)).is_err());
        all.stage.lab.client.output("ip", &["rule", "delete", "pref", "27590"])?;
        Ok(notified("Blocked ({")
            && notified(&format!("'destination': <'{INTERNET_V4}'>"))
            && notified("-u critical Changed by others ('routing', ")
            && python.said(&format!("blocked: {INTERNET_V4} of user ")))
    })?;
    caller.call::<_, bool>("Unlock", &"a test")?;
    eventually("an open machine is followed", || Ok(follow.said("OPEN: everything leaves")))?;
    Ok(())
}
