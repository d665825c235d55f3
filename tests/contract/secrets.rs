//! No key leaves the program.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use killswitch::config::Key;
use killswitch::lab::harness::{Outcome, eventually};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::{Machine, PRESHARED_KEY, PRIVATE_KEY, TUNNEL, failed};

/// Each key in base64 (also without its padding), and in hexadecimal.
fn spellings() -> Result<Vec<String>, killswitch::config::KeyError> {
    let mut all = Vec::new();
    for text in [PRIVATE_KEY, PRESHARED_KEY] {
        let key = Key::from_base64(text)?;
        let hex: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        all.extend([text.trim_end_matches('=').to_owned(), hex.to_uppercase(), hex]);
    }
    Ok(all)
}

fn assert_clean(what: &str, bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    match spellings()?.iter().find(|key| text.contains(*key)) {
        Some(_) => Err(failed(format!("{what} holds a key"))),
        None => Ok(()),
    }
}

pub fn no_output_holds_a_key() -> Outcome {
    assert!(assert_clean("the control", PRIVATE_KEY.as_bytes()).is_err());
    let inline = format!("private_key = \"{PRIVATE_KEY}\"");
    let wg = format!(
        "[Interface]\nPrivateKey = {PRIVATE_KEY}\nAddress = 10.64.0.2/32\nColour = {PRIVATE_KEY}\n\
         [Peer]\nPublicKey = {}\nPresharedKey = {PRESHARED_KEY}\nEndpoint = 198.51.100.7:51820\n\
         AllowedIPs = 0.0.0.0/0\n",
        crate::machine::PUBLIC_KEY
    );
    let configurations = [
        TUNNEL.to_owned(),
        TUNNEL.replace("private_key_file = \"private.key\"", &inline),
        TUNNEL.replace("\"private.key\"", &format!("\"{PRIVATE_KEY}\"")),
        TUNNEL.replace("\"wg0\"", &format!("\"{PRESHARED_KEY}\"")),
        TUNNEL.replace("se-sto-1", PRESHARED_KEY),
        format!("{TUNNEL}\nnote = \"{PRIVATE_KEY}"),
        "[tunnel]\nconfig = \"wg.conf\"\n".to_owned(),
        "[tunnel]\nconfig = \"good.conf\"\n".to_owned(),
    ];
    let machine = Machine::new()?;
    machine.write("wg.conf", &wg, 0o600)?;
    let good = wg.replace(&format!("Colour = {PRIVATE_KEY}\n"), "");
    machine.write("good.conf", good, 0o600)?;
    for (number, text) in configurations.iter().enumerate() {
        machine.write("killswitch.toml", text, 0o600)?;
        for command in [
            &["lock", "--boot"][..],
            &["lock"],
            &["reload"],
            &["status"],
            &["--json", "status"],
            &["check"],
            &["--json", "check"],
            &["plan"],
            &["--json", "plan"],
            &["rules"],
            &["rules", "--format", "json"],
            &["explain", "--out", "eth0", "--to", "1.1.1.1"],
            &["unlock", "--yes"],
        ] {
            let run = machine.killswitch(command)?;
            assert_clean(&format!("{number} {command:?}: {run:?}"), run.out.as_bytes())?;
            assert_clean(&format!("{number} {command:?}: {run:?}"), run.err.as_bytes())?;
        }
    }
    machine.configure(TUNNEL)?;
    machine.killswitch(&["lock"])?.exits(0);
    assert_clean("the table", machine.table()?.as_bytes())
}

/// A command that has read its keys and waits for its turn.
struct Waiting {
    child: killswitch::lab::host::Process,
    _turn: Flock<fs::File>,
}

impl Waiting {
    fn start(machine: &Machine) -> Result<Self, killswitch::lab::harness::Failed> {
        let file = fs::File::create("/run/killswitch.lock")?;
        let turn = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| failed(error))?;
        let mut command = Command::new("sh");
        let inner = machine.command(&["lock"]);
        let words: Vec<_> = std::iter::once(inner.get_program())
            .chain(inner.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        command
            .args(["-c", &format!("ulimit -c unlimited; exec {}", words.join(" "))])
            .env("SSH_CONNECTION", "127.0.0.1 1 127.0.0.1 22")
            .current_dir(machine.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = machine.host.start(command)?;
        let id = child.child().id();
        eventually("the command waits for its turn", || {
            let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
            let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
            Ok(targets.any(|target| target.ends_with("killswitch.lock")))
        })?;
        Ok(Waiting { child, _turn: turn })
    }
}

pub fn a_process_shows_no_key_and_leaves_no_core() -> Outcome {
    let machine = Machine::new()?;
    let mut waiting = Waiting::start(&machine)?;
    let id = waiting.child.child().id();
    for file in ["cmdline", "environ", "comm", "status", "maps"] {
        let content = fs::read(format!("/proc/{id}/{file}"))?;
        assert!(!content.is_empty(), "{file}");
        assert_clean(file, &content)?;
    }
    let process = Pid::from_raw(i32::try_from(id)?);
    kill(process, Signal::SIGABRT)?;
    let status = waiting.child.child().wait()?;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped(), "a core dump was written");

    // The control: this machine does write core dumps.
    let mut control = Command::new("sh");
    control.args(["-c", "ulimit -c unlimited; kill -ABRT $$"]).current_dir(machine.path(""));
    if !machine.host.run(|| control.status())??.core_dumped() {
        println!("no core dumps here at all: nothing was shown (see kernel.core_pattern)");
    }
    Ok(())
}

/// A program that hangs must not keep an administrator from locking.
pub fn waiting_for_a_turn_has_an_end() -> Outcome {
    let machine = Machine::new()?;
    let mut waiting = Waiting::start(&machine)?;
    assert!(waiting.child.child().wait()?.success());
    machine.killswitch(&["status"])?.exits(10);
    Ok(())
}
