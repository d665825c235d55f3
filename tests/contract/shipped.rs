//! The files that a package installs.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use killswitch::lab::addresses::{CLIENT_LINK, INTERNET_V4, INTERNET_V6, LAN_LINK, TUNNEL_V4};
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::traffic::Flood;
use killswitch::lab::{Capture, Context, Expectation, Lab, Result};

use crate::machine::{Machine, PROGRAM, failed};

/// A tunnel that brings no routing guard, and needs no key.
const EXTERNAL: &str = "[tunnel]
kind = \"external\"
interface = \"tun0\"
addresses = [\"10.8.0.2/24\"]
[[server]]
name = \"one\"
endpoints = [\"198.51.100.7:1194\"]
";

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn lock_file() -> String {
    shipped("nft/lock.nft").display().to_string()
}

pub fn the_static_lock_is_the_strictest() -> Outcome {
    let machine = Machine::new()?;
    let ours = machine.killswitch(&["rules", "--strictest"])?.exits(0).out;
    let file = std::fs::read_to_string(lock_file())?;
    assert_eq!(ours, file, "killswitch rules --strictest > nft/lock.nft");
    for words in ["generated", "nft delete table inet killswitch"] {
        assert!(file.to_lowercase().contains(words), "{words} is not in {file}");
    }
    machine.host.command("timeout", &["20", "nft", "-c", "-f", &lock_file()])?;
    assert_eq!(machine.table()?, "no table", "a check changes nothing");
    // Twice, as at a boot and by hand: nothing is doubled.
    machine.host.command("timeout", &["20", "nft", "-f", &lock_file()])?;
    let once = machine.contents()?;
    machine.host.command("timeout", &["20", "nft", "-f", &lock_file()])?;
    assert_eq!(machine.contents()?, once);
    let undo = "nft delete table inet killswitch";
    machine.host.command("sh", &["-c", undo])?;
    assert!(machine.reaches_the_other_end()?);
    Ok(())
}

/// Knocks by every protocol at hosts of the laboratory.
fn knock(lab: &Lab) -> Outcome {
    for (address, ping) in [(INTERNET_V4.to_string(), "-4"), (INTERNET_V6.to_string(), "-6")] {
        lab.client.output("ping", &[ping, "-c1", "-W1", &address])?;
    }
    lab.client.run(|| {
        for (from, to) in [("0.0.0.0:0", INTERNET_V4.into()), ("[::]:0", INTERNET_V6.into())] {
            let Ok(socket) = UdpSocket::bind(from) else { continue };
            let to: std::net::IpAddr = to;
            let _ = socket.send_to(b"knock", (to, 53));
            let limit = std::time::Duration::from_millis(500);
            let _ = std::net::TcpStream::connect_timeout(&(to, 443).into(), limit);
        }
    })?;
    Ok(())
}

pub fn nothing_leaves_under_the_static_lock() -> Outcome {
    let lab = Lab::new()?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    knock(&lab)?;
    eventually("without a lock every knock is seen", || {
        let seen = capture.report().leaked;
        let kinds = ["ICMP type 8", "ICMPv6 type 128", ":53", ":443"];
        Ok(kinds.iter().all(|kind| seen.keys().any(|class| class.contains(kind))))
    })?;
    lab.client.command("timeout", &["20", "nft", "-f", &lock_file()])?;
    capture.take();
    knock(&lab)?;
    let report = capture.stop()?;
    assert_eq!(report.leaked_total(), 0, "{}", report.summary(20));
    Ok(())
}

pub fn the_program_takes_the_static_lock_over_without_a_gap() -> Outcome {
    const ROUNDS: u64 = 20;
    let machine = Machine::new()?;
    // Nothing but the table stops the flood.
    machine.configure(EXTERNAL)?;
    let lab = Lab::new()?;
    let configuration = machine.path("killswitch.toml").display().to_string();
    let run = |command: &str| {
        let output = lab.client.output(PROGRAM, &["--config", &configuration, command, "--yes"])?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr))),
        }
    };
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    let flood = Flood::start(&lab, (INTERNET_V4, 9).into(), Some(CLIENT_LINK))?;
    eventually("the flood is seen", || Ok(capture.report().leaked_total() > 100))?;
    lab.client.command("timeout", &["20", "nft", "-f", &lock_file()])?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    capture.take();
    for _ in 0..ROUNDS {
        run("lock")?;
        // Only the static table again, as after a boot.
        lab.client.command("nft", &["delete", "table", "netdev", "killswitch"])?;
        lab.client.command("timeout", &["20", "nft", "-f", &lock_file()])?;
    }
    let report = capture.stop()?;
    let flooded = flood.stop()?;
    assert!(flooded.sent + flooded.refused > 100 * ROUNDS, "{flooded:?}");
    assert_eq!(report.leaked_total(), 0, "{}", report.summary(20));
    run("lock")?;
    let status = lab.client.output(PROGRAM, &["--config", &configuration, "status"])?;
    assert_eq!(status.status.code(), Some(10), "{status:?}");
    Ok(())
}

/// Whether the hooks would take this text into an initrd.
fn goes_into_the_initrd(text: &str) -> Result<bool> {
    let machine = Machine::new()?;
    for folder in ["etc/killswitch", "usr/bin"] {
        std::fs::create_dir_all(machine.path(folder)).during(folder)?;
    }
    machine.write("etc/killswitch/initrd.toml", text, 0o600)?;
    let program = machine.path("usr/bin/killswitch");
    std::os::unix::fs::symlink(PROGRAM, program).during("the program")?;
    let script = ". \"$1\"; configuration_for_initrd \"$2\"";
    let contents = shipped("packaging/initrd/contents").display().to_string();
    let root = machine.path("").display().to_string();
    Ok(machine.host.output("sh", &["-c", script, "sh", &contents, &root])?.status.success())
}

pub fn no_comment_takes_a_key_into_the_initrd() -> Outcome {
    let with = |comment: &str| format!("# A tunnel.\n  # PrivateKey\n{EXTERNAL}{comment}\n");
    assert!(goes_into_the_initrd(&with(""))?, "of comments whole lines are left out");
    for comment in ["[allow] # PrivateKey", "[allow]# PrivateKey", "[allow]\nlan = false\t#"] {
        assert!(!goes_into_the_initrd(&with(comment))?, "{comment}");
    }
    Ok(())
}

pub fn the_unit_is_sound() -> Outcome {
    let machine = Machine::new()?;
    let text = std::fs::read_to_string(shipped("systemd/killswitch-lock.service"))?;
    let unit = |key: &str| -> Vec<String> {
        let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    assert_eq!(unit("DefaultDependencies"), ["no"]);
    assert_eq!(unit("Wants"), ["network-pre.target"]);
    for later in ["network-pre.target", "sysinit.target", "systemd-networkd.service"] {
        assert!(unit("Before").contains(&later.to_owned()), "{later}");
    }
    for opening in ["ExecStop", "ExecStopPost", "After", "PartOf", "BindsTo", "Conflicts"] {
        assert!(unit(opening).is_empty(), "{opening}");
    }
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: systemd-analyze is not installed");
        return Ok(());
    }
    // The program is not installed here.
    let script = shipped("systemd/killswitch-lock-boot").display().to_string();
    let here = text.replace("/usr/lib/killswitch/lock-boot", &script);
    machine.write("killswitch-lock.service", here, 0o644)?;
    let path = machine.path("killswitch-lock.service").display().to_string();
    let verdict = machine.host.output("systemd-analyze", &["verify", "--man=no", &path])?;
    let words = String::from_utf8_lossy(&verdict.stderr).into_owned();
    assert!(verdict.status.success() && !words.contains("killswitch"), "{words}");
    Ok(())
}

pub fn the_daemons_unit_is_sound() -> Outcome {
    let machine = Machine::new()?;
    let text = std::fs::read_to_string(shipped("systemd/killswitch.service"))?;
    for line in [
        "Type=notify",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "KillMode=process",
        "FileDescriptorStorePreserve=yes",
        "LimitCORE=0",
        "Also=killswitch-lock.service",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}");
    }
    // A failed lock must not keep the daemon from starting, and stopping must not open.
    for key in ["ExecStop", "ExecStopPost", "Requires", "Requisite", "BindsTo", "PartOf"] {
        assert!(!text.lines().any(|it| it.starts_with(&format!("{key}="))), "{key}");
    }
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: systemd-analyze is not installed");
        return Ok(());
    }
    // The program is not installed here.
    machine.write("killswitch.service", text.replace("/usr/bin/killswitch", PROGRAM), 0o644)?;
    let path = machine.path("killswitch.service").display().to_string();
    let verdict = machine.host.output("systemd-analyze", &["verify", "--man=no", &path])?;
    let words = String::from_utf8_lossy(&verdict.stderr);
    // Newer than the systemd of Debian 12, which does without.
    let newer = ["'FileDescriptorStorePreserve'", "ignoring: disconnected"];
    let complaints = words.lines().filter(|it| !newer.iter().any(|words| it.contains(words)));
    let ours: Vec<&str> = complaints.filter(|it| it.contains("killswitch")).collect();
    assert!(verdict.status.success() && ours.is_empty(), "{ours:?}");
    Ok(())
}

pub fn the_boot_script_falls_back() -> Outcome {
    for (program, code, locked) in [
        ("exit 0", 0, false),
        ("exit 78", 78, false),
        ("exit 1", 1, true),
        ("exit 4", 1, true),
        ("kill -SEGV $$", 1, true),
    ] {
        let machine = Machine::new()?;
        machine.write("program", format!("#!/bin/sh\n{program}\n"), 0o755)?;
        let mut script = Command::new(shipped("systemd/killswitch-lock-boot"));
        script
            .env("KILLSWITCH_PROGRAM", machine.path("program"))
            .env("KILLSWITCH_RULES", lock_file())
            .env("KILLSWITCH_UDEV", machine.path("udev"));
        let run = machine.run(script)?.exits(code);
        assert_eq!(machine.table()? != "no table", locked, "{program}: {run:?}");
        assert_eq!(run.err.contains("is loaded: nothing leaves"), locked, "{program}: {run:?}");
    }
    // Packet sockets are stopped, too, on links that are there and that come; a program that works
    // takes it all over.
    let machine = Machine::new()?;
    let fall_back = |arguments: &[&str]| {
        let mut script = Command::new(shipped("systemd/killswitch-lock-boot"));
        script
            .args(arguments)
            .env("KILLSWITCH_PROGRAM", "/nonexistent")
            .env("KILLSWITCH_RULES", lock_file())
            .env("KILLSWITCH_UDEV", machine.path("udev"));
        machine.run(script)
    };
    let guards = || -> Result<String> {
        let listed = machine.host.output("nft", &["list", "table", "netdev", "killswitch"])?;
        Ok(String::from_utf8_lossy(&listed.stdout).into_owned())
    };
    machine.host.ip("link add early type bridge")?;
    fall_back(&[])?.exits(1);
    assert!(guards()?.contains("device \"early\""), "{}", guards()?);
    let rule = std::fs::read_to_string(machine.path("udev/50-killswitch.rules"))?;
    assert!(rule.contains("lock-boot links"), "{rule}");
    machine.host.ip("link add late type bridge")?;
    fall_back(&["links"])?.exits(0);
    assert!(guards()?.contains("device \"late\""), "{}", guards()?);
    machine.killswitch(&["lock"])?.exits(0);
    // Not listed: see threat 42.
    let status = machine.killswitch(&["--json", "status"])?;
    assert!(status.out.contains("\"intact\": true"), "{status:?}");
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    fall_back(&["links"])?.exits(0);
    assert_eq!(guards()?, "");
    // What the program left before it failed stays.
    let machine = Machine::new()?;
    machine.killswitch(&["lock"])?.exits(0);
    let table = machine.table()?;
    let mut script = Command::new(shipped("systemd/killswitch-lock-boot"));
    script.env("KILLSWITCH_PROGRAM", "/nonexistent").env("KILLSWITCH_RULES", lock_file());
    machine.run(script)?.exits(1).complains(&["is there: locked"]);
    assert_eq!(machine.table()?, table);
    // And where nothing helps, that is said.
    let machine = Machine::new()?;
    let mut script = Command::new(shipped("systemd/killswitch-lock-boot"));
    script.env("KILLSWITCH_PROGRAM", "/nonexistent").env("KILLSWITCH_RULES", "/nonexistent");
    machine.run(script)?.exits(1).complains(&["NOT LOCKED"]);
    Ok(())
}

/// Whether the client answers on its NIC for an address of another link.
fn answers_for_the_tunnel(lab: &Lab) -> Result<bool> {
    let address = TUNNEL_V4.to_string();
    lab.router.output("ip", &["neigh", "del", &address, "dev", LAN_LINK])?;
    lab.router.output("ping", &["-c1", "-W2", &address])?;
    let neighbours = lab.router.command("ip", &["neigh", "show", &address])?;
    Ok(neighbours.contains("lladdr"))
}

pub fn the_kernel_settings_do_what_they_are_for() -> Outcome {
    assert_ne!(TUNNEL_V4, Ipv4Addr::UNSPECIFIED);
    let lab = Lab::new()?;
    lab.client.ip(&format!("link add wg0 type bridge\naddress add {TUNNEL_V4}/32 dev wg0"))?;
    lab.client.ip("link set wg0 up")?;
    lab.router.ip(&format!("route add {TUNNEL_V4}/32 dev {LAN_LINK}"))?;
    assert!(answers_for_the_tunnel(&lab)?, "without the settings anybody learns the address");
    let text = std::fs::read_to_string(shipped("packaging/sysctl.d/50-killswitch.conf"))?;
    let settings: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .collect();
    assert_eq!(settings.len(), 2, "{settings:?}");
    for (key, value) in settings {
        lab.client.sysctl(&key.replace('.', "/"), value)?;
    }
    assert!(!answers_for_the_tunnel(&lab)?);
    Ok(())
}
