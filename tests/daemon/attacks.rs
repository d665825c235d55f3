//! What a machine, its administrator or another program may do to the daemon.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use killswitch::dbus::SOCKET;
use killswitch::lab::harness::{Outcome, Test, eventually};
use killswitch::lab::host::Process;
use killswitch::lab::setup;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("a_hung_wireguard_is_replaced", hung_wireguard),
    ("a_second_daemon_does_not_start", second_daemon),
    ("a_renamed_tunnel_leaves_no_link_behind", renamed),
    ("a_route_past_the_tunnel_is_removed", stray_route),
    ("a_foreign_address_on_the_tunnel_is_removed", foreign_address),
    ("what_somebody_changed_of_wireguard_is_set_back", foreign_settings),
    ("replies_that_a_sysctl_drops_come_again", dropped_replies),
    ("a_tunnel_that_was_replaced_unseen_gets_its_peer", replaced),
    ("a_foreign_mtu_on_the_tunnel_is_set_back", foreign_mtu),
    ("a_tunnel_that_blinks_is_whole_again", blinking),
    ("an_endpoint_that_only_handshakes_reach_is_left", swallowed),
    ("connect_to_an_open_machine_says_so", connect_while_open),
    ("unlock_wins_over_an_earlier_reload", unlock_during_reload),
    ("a_crowd_before_a_hung_daemon_hangs_no_command", crowd),
];

/// The process that serves the tunnel.
fn wireguard() -> std::io::Result<Pid> {
    let stream = UnixStream::connect("/var/run/wireguard/wg0.sock")?;
    Ok(Pid::from_raw(getsockopt(&stream, sockopt::PeerCredentials)?.pid()))
}

fn has_ended(process: &mut Process) -> bool {
    !matches!(process.child().try_wait(), Ok(None))
}

fn hung_wireguard() -> Outcome {
    let stage = Stage::set()?;
    kill(wireguard()?, Signal::SIGSTOP)?;
    assert!(!stage.has_traffic()?, "it hangs");
    stage.wait_for_traffic("WireGuard hung")?;
    stage.nothing_leaked("WireGuard hung")?;
    Ok(())
}

fn second_daemon() -> Outcome {
    let stage = Stage::set()?;
    let mut command = Command::new(&stage.program);
    command.arg("--config").arg(&stage.configuration).arg("daemon");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut second = stage.lab.client.start(command)?;
    eventually("the second daemon ends", || Ok(has_ended(&mut second)))?;
    let output = stage.ask(&["reconnect"])?;
    assert!(output.status.success(), "the first one still answers: {output:?}");
    assert_eq!(stage.status()?["layers"]["owned"], true);
    stage.nothing_leaked("a second daemon")?;
    Ok(())
}

fn renamed() -> Outcome {
    let stage = Stage::set()?;
    let good = fs::read_to_string(&stage.configuration)?;
    let outcome = rename(&stage, &good);
    // Its program would outlive the laboratory.
    let _ = stage.lab.client.output("ip", &["link", "delete", "wg1"]);
    outcome
}

fn rename(stage: &Stage, good: &str) -> Outcome {
    let text = good.replace("interface = \"wg0\"", "interface = \"wg1\"");
    assert_ne!(text, good);
    fs::write(&stage.configuration, text)?;
    let output = stage.ask(&["reload", "--yes"])?;
    assert!(output.status.success(), "{output:?}");
    stage.wait_for_traffic("renaming the tunnel")?;
    assert!(stage.lab.client.has_link("wg1")?);
    eventually("the old link goes", || Ok(!stage.lab.client.has_link("wg0")?))?;
    stage.nothing_leaked("renaming the tunnel")?;
    Ok(())
}

fn stray_route() -> Outcome {
    let stage = Stage::set()?;
    // As ours would be, but through the link that leaves the machine.
    let stray = "default dev eth0 table 27507 proto kernel metric 1";
    stage.lab.client.ip(&format!("route add {stray}"))?;
    eventually("it is removed", || {
        let routes = stage.lab.client.command("ip", &["route", "show", "table", "27507"])?;
        Ok(!routes.contains("eth0") && routes.contains("wg0"))
    })?;
    stage.wait_for_traffic("a route past the tunnel")?;
    stage.nothing_leaked("a route past the tunnel")?;
    // Also while there is no tunnel that it could be in the way of.
    assert!(stage.ask(&["disconnect"])?.status.success());
    stage.lab.client.ip(&format!("route add {stray}"))?;
    eventually("it is removed", || {
        let routes = stage.lab.client.command("ip", &["route", "show", "table", "27507"])?;
        Ok(!routes.contains("eth0"))
    })?;
    Ok(())
}

fn swallowed() -> Outcome {
    let stage = Stage::set()?;
    // A server that has answered is left for silence alone.
    assert!(stage.ask(&["disconnect"])?.status.success());
    stage.lab.servers[0].swallow()?;
    let output = stage.ask(&["connect", "server1"])?;
    assert!(output.status.success(), "the handshake passes: {output:?}");
    assert!(!stage.has_traffic()?, "nothing else does");
    stage.wait_for_traffic("data that is swallowed")?;
    assert_eq!(stage.status()?["tunnel"]["server"], "server2");
    stage.nothing_leaked("data that is swallowed")?;
    Ok(())
}

fn connect_while_open() -> Outcome {
    let stage = Stage::set()?;
    assert!(stage.ask(&["unlock", "--yes"])?.status.success());
    let output = stage.ask(&["connect"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the lock is open"), "{output:?}");
    Ok(())
}

fn unlock_during_reload() -> Outcome {
    /// What takes the daemon a while to read and weigh.
    const SERVERS: u32 = 20_000;
    let stage = Stage::set()?;
    let good = std::fs::read_to_string(&stage.configuration)?;
    let many: Vec<String> =
        (0..SERVERS).map(|number| format!("\"203.{}.{}.7\"", number / 256, number % 256)).collect();
    let many = format!("{good}\n[allow]\nntp = [{}]\n", many.join(", "));
    std::fs::write(&stage.configuration, many)?;
    let mut command = Command::new(&stage.program);
    command.arg("--config").arg(&stage.configuration).args(["reload", "--yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut reload = stage.lab.client.start(command)?;
    eventually("the daemon is asked", || Ok(stage.daemon.log()?.contains("asked to reload")))?;
    let output = stage.ask(&["unlock", "--yes"])?;
    assert!(output.status.success(), "{output:?}");
    eventually("an answer", || Ok(has_ended(&mut reload)))?;
    assert_eq!(stage.ask(&["status"])?.status.code(), Some(20), "it was locked again");
    Ok(())
}

/// Everybody who asks takes a place in the queue of a daemon that takes nobody.
fn crowd() -> Outcome {
    /// More than the longest queue (net.core.somaxconn).
    const CROWD: usize = 100_000;
    let mut stage = Stage::set()?;
    stage.daemon.signal(Signal::SIGSTOP)?;
    let address = UnixAddr::new(Path::new(SOCKET))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let is_full = || -> nix::Result<bool> {
        let caller = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        Ok(connect(caller.as_raw_fd(), &address) == Err(Errno::EAGAIN))
    };
    assert!((0..CROWD).any(|_| is_full() == Ok(true)), "the queue has no end");
    let mut command = Command::new(&stage.program);
    command.arg("--config").arg(&stage.configuration).args(["unlock", "--yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut unlock = stage.lab.client.start(command)?;
    eventually("an answer", || Ok(has_ended(&mut unlock)))?;
    stage.nothing_leaked("a crowd")?;
    Ok(())
}

/// The kernel would choose it as the source of what enters the tunnel, and the lock refuse it.
fn foreign_address() -> Outcome {
    let stage = Stage::set()?;
    stage
        .lab
        .client
        .ip("address add 192.168.1.50/24 dev wg0\naddress delete 10.64.0.2/32 dev wg0")?;
    eventually("the tunnel has its own address only", || {
        let listing = stage.lab.client.command("ip", &["-4", "address", "show", "dev", "wg0"])?;
        Ok(listing.contains("10.64.0.2") && !listing.contains("192.168.1.50"))
    })?;
    stage.wait_for_traffic("a foreign address on the tunnel")?;
    stage.nothing_leaked("a foreign address on the tunnel")?;
    Ok(())
}

fn foreign_mtu() -> Outcome {
    let stage = Stage::set()?;
    // The lower one is too low for IPv6: its address and routes go.
    for mtu in ["1300", "1000"] {
        stage.lab.client.ip(&format!("link set wg0 mtu {mtu}"))?;
        eventually("the tunnel has its own MTU", || {
            Ok(stage.lab.client.command("ip", &["link", "show", "wg0"])?.contains("mtu 1420"))
        })?;
        stage.wait_for_traffic("a foreign MTU on the tunnel")?;
    }
    stage.nothing_leaked("a foreign MTU on the tunnel")?;
    Ok(())
}

/// Down and up again before anybody looks: the kernel takes routes, of which it tells nobody, and the
/// IPv6 address.
fn blinking() -> Outcome {
    let stage = Stage::set()?;
    for _ in 0..20 {
        stage.lab.client.ip("link set wg0 down\nlink set wg0 up")?;
        stage.wait_for_traffic("the tunnel's link went down and up")?;
    }
    stage.nothing_leaked("the tunnel's link went down and up")?;
    Ok(())
}

/// Of which no event tells.
fn foreign_settings() -> Outcome {
    let stage = Stage::set()?;
    let key = stage.lab.client.command("wg", &["show", "wg0", "public-key"])?;
    let other = "wg genkey >/run/other.key && wg set wg0 private-key /run/other.key listen-port 0";
    for change in ["wg set wg0 fwmark 7 listen-port 0", other] {
        stage.lab.client.command("sh", &["-c", change])?;
        assert!(!stage.has_traffic()?, "{change}");
        stage.wait_for_traffic(change)?;
        assert_eq!(stage.lab.client.command("wg", &["show", "wg0", "fwmark"])?.trim(), "0x6b73");
        assert_eq!(stage.lab.client.command("wg", &["show", "wg0", "public-key"])?, key);
    }
    stage.lab.client.command("wg", &["set", "wg0", "fwmark", "7", "listen-port", "0"])?;
    assert!(stage.ask(&["reconnect"])?.status.success());
    stage.nothing_leaked("foreign settings of WireGuard")?;
    Ok(())
}

/// A strict reverse-path filter looks at the mark only if it is told to (threat 52).
fn dropped_replies() -> Outcome {
    let stage = Stage::set()?;
    let client = &stage.lab.client;
    // IPv6 has no such filter, and the daemon would turn to a server's IPv6 endpoint.
    client.ip("route delete ::/0")?;
    client.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    assert!(stage.has_traffic()?);
    client.sysctl("net/ipv4/conf/all/src_valid_mark", "0")?;
    assert!(!stage.has_traffic()?, "replies are dropped");
    stage.wait_for_traffic("src_valid_mark was set back")?;
    stage.nothing_leaked("src_valid_mark was set back")?;
    Ok(())
}

/// By another of its name and kind, before anybody looks.
fn replaced() -> Outcome {
    let mut stage = Stage::set()?;
    stage.fall_silent()?;
    let client = &stage.lab.client;
    stage.daemon.signal(Signal::SIGSTOP)?;
    kill(wireguard()?, Signal::SIGKILL)?;
    eventually("the tunnel's link goes", || Ok(!client.has_link("wg0")?))?;
    fs::remove_file("/var/run/wireguard/wg0.sock")?;
    let mut command = Command::new(setup::wireguard()?);
    command.args(["-f", "wg0"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _other = client.start(command)?;
    eventually("another link", || Ok(client.has_link("wg0")? && wireguard().is_ok()))?;
    client.ip("address add 10.64.0.2/32 dev wg0
         address add fd00:64::2/128 dev wg0 nodad
         link set wg0 mtu 1420 up")?;
    stage.daemon.signal(Signal::SIGCONT)?;
    stage.wait_for_traffic("another link took the tunnel's place")?;
    stage.nothing_leaked("another link took the tunnel's place")?;
    Ok(())
}
