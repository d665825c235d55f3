//! The link: made, adopted, left alone, made anew.

use std::path::PathBuf;

use killswitch::config::Backend;
use killswitch::engine::TunnelLink;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Context, Result, setup};
use killswitch::netlink::{Family, Socket};
use killswitch::wireguard::{Device, Error};
use nix::sys::signal::Signal;

use crate::tunnel::{Tunnel, children, device, processes};

pub fn a_link_is_made_as_configured() -> Outcome {
    let tunnel = Tunnel::with(|config| {
        config.tunnel.listen_port = Some(51900);
        config.tunnel.mtu = Some(1300);
    })?;
    assert_eq!(tunnel.ask(Device::link)?, (TunnelLink::Absent, None));
    assert!(tunnel.ask(Device::read)?.is_none());
    let link = tunnel.ensure()?;
    assert_eq!(link.degraded, [""; 0]);
    assert_eq!(tunnel.ask(Device::link)?, (TunnelLink::Up, Some(link.index)));
    assert_eq!(tunnel.wg("public-key")?, tunnel.lab.client_keys.public_text());
    assert_eq!(tunnel.wg("fwmark")?, format!("{MARK:#x}"));
    assert_eq!(tunnel.wg("listen-port")?, "51900");
    let addresses = tunnel.addresses(TUNNEL_LINK)?;
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    for address in [format!("{TUNNEL_V4}/32"), format!("{TUNNEL_V6}/128")] {
        assert!(addresses.contains(&address), "{addresses}");
    }
    let link = tunnel.lab.client.command("ip", &["link", "show", TUNNEL_LINK])?;
    assert!(link.contains("mtu 1300") && link.contains(",UP"), "{link}");
    tunnel.ask(Device::remove_link)?;
    assert_eq!(tunnel.ask(Device::link)?, (TunnelLink::Absent, None));
    eventually("the program ends", || Ok(processes()?.is_empty()))?;
    Ok(())
}

/// Or every event of ours would lead to the next.
pub fn a_link_that_is_right_is_left_alone() -> Outcome {
    let tunnel = Tunnel::connected()?;
    // RTNLGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR
    let listener =
        tunnel.lab.client.run(|| Socket::open_subscribed(Family::Route, &[1, 5, 9]))??;
    let before = (tunnel.process()?, tunnel.wg("listen-port")?, tunnel.wg("latest-handshakes")?);
    // The kernel tells late that an IPv6 address is in use.
    eventually("silence", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        Ok(listener.receive_pending().during("listening")?.is_none())
    })?;
    for _ in 0..3 {
        tunnel.ensure()?;
    }
    let events = listener.receive_pending()?;
    assert!(events.is_none(), "{events:?}");
    let after = (tunnel.process()?, tunnel.wg("listen-port")?, tunnel.wg("latest-handshakes")?);
    assert_eq!(before, after);
    // The listener would have heard.
    tunnel.lab.client.ip(&format!("link set {TUNNEL_LINK} mtu 1400"))?;
    assert!(listener.receive_pending()?.is_some());
    Ok(())
}

/// What is found foreign is what is taken away: the daemon looks, mends, and finds nothing more.
pub fn foreign_settings_are_found_and_taken_away() -> Outcome {
    let tunnel = Tunnel::new()?;
    tunnel.ensure()?;
    let foreign = || -> Result<bool> {
        let index = tunnel.ask(Device::link)?.1.unwrap_or_default();
        tunnel.ask(|device| device.has_foreign_settings(index))
    };
    assert!(!foreign()?);
    for change in [
        format!("address add 10.9.9.9/24 dev {TUNNEL_LINK}"),
        format!("address add fd00:9::9/64 dev {TUNNEL_LINK} nodad"),
        format!("address add 10.9.9.9 peer 10.9.9.8/32 dev {TUNNEL_LINK}"),
        format!("address add fd00:9::9 peer fd00:9::8/128 dev {TUNNEL_LINK} nodad"),
        format!("address add {TUNNEL_V4}/24 dev {TUNNEL_LINK}"),
        format!("address del {TUNNEL_V4}/32 dev {TUNNEL_LINK}"),
        format!("link set {TUNNEL_LINK} mtu 1300"),
        // Without IPv6, and so without its address (IPV6_MIN_MTU).
        format!("link set {TUNNEL_LINK} mtu 1000"),
    ] {
        tunnel.lab.client.ip(&change)?;
        assert!(foreign()?, "{change}");
        tunnel.ensure()?;
        assert!(!foreign()?, "{change}: {}", tunnel.addresses(TUNNEL_LINK)?);
    }
    Ok(())
}

pub fn what_somebody_changed_is_mended() -> Outcome {
    let tunnel = Tunnel::connected()?;
    tunnel.lab.client.ip(&format!(
        "address add 10.9.9.9/24 dev {TUNNEL_LINK}
         address add fd00:9::9/64 dev {TUNNEL_LINK} nodad
         address del {TUNNEL_V4}/32 dev {TUNNEL_LINK}
         link set {TUNNEL_LINK} mtu 1400 down"
    ))?;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Down);
    tunnel.ensure()?;
    let addresses = tunnel.addresses(TUNNEL_LINK)?;
    assert_eq!(addresses.lines().count(), 2, "{addresses}");
    assert!(addresses.contains(&format!("{TUNNEL_V4}/32")), "{addresses}");
    assert!(tunnel.lab.client.command("ip", &["link", "show", TUNNEL_LINK])?.contains("mtu 1420"));
    // Another mark: what it sent would not be known as ours.
    tunnel.lab.client.command("wg", &["set", TUNNEL_LINK, "fwmark", "7", "listen-port", "0"])?;
    tunnel.ensure()?;
    assert_eq!(tunnel.wg("fwmark")?, format!("{MARK:#x}"));
    assert_eq!(tunnel.wg("public-key")?, tunnel.lab.client_keys.public_text());
    tunnel.connect(tunnel.first())?;
    Ok(())
}

pub fn a_new_daemon_adopts_a_working_session() -> Outcome {
    let mut tunnel = Tunnel::connected()?;
    tunnel.route()?;
    tunnel.ping("1.1.1.1")?;
    let before = (tunnel.process()?, tunnel.read()?, tunnel.wg("latest-handshakes")?);
    tunnel.device = device(&tunnel.config)?;
    tunnel.ensure()?;
    let after = tunnel.read()?;
    assert_eq!(after.candidate, Some(tunnel.first()));
    assert!(after.received >= before.1.received && before.1.received > 0, "{after:?}");
    assert_eq!((tunnel.process()?, tunnel.wg("latest-handshakes")?), (before.0, before.2));
    tunnel.ping("1.1.1.1")?;
    Ok(())
}

pub fn a_program_that_dies_or_hangs_is_replaced() -> Outcome {
    let tunnel = Tunnel::connected()?;
    let first = tunnel.process()?;
    tunnel.signal(Signal::SIGKILL)?;
    eventually("the link goes with its program", || {
        Ok(tunnel.ask(Device::link)?.0 == TunnelLink::Absent)
    })?;
    assert!(matches!(tunnel.ask(|device| Ok(device.read()))?, Ok(None)));
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    let second = tunnel.process()?;
    assert_ne!(first, second);
    // It keeps its link and its socket, but does not answer.
    tunnel.signal(Signal::SIGSTOP)?;
    assert!(matches!(tunnel.ask(|device| Ok(device.read()))?, Err(Error::Userspace { .. })));
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    assert_ne!(tunnel.process()?, second);
    Ok(())
}

pub fn a_link_that_somebody_deleted_comes_back() -> Outcome {
    let tunnel = Tunnel::connected()?;
    for _ in 0..5 {
        tunnel.lab.client.ip(&format!("link delete {TUNNEL_LINK}"))?;
        tunnel.ensure()?;
        tunnel.connect(tunnel.first())?;
        assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Up);
    }
    tunnel.process()?;
    Ok(())
}

pub fn nobody_else_can_read_a_key() -> Outcome {
    let tunnel = Tunnel::connected()?;
    let process = tunnel.process()?;
    let keys = [
        tunnel.lab.client_keys.private_text().into_bytes(),
        tunnel
            .lab
            .client_keys
            .private
            .iter()
            .flat_map(|it| format!("{it:02x}").into_bytes())
            .collect(),
        tunnel.lab.client_keys.private.to_vec(),
    ];
    for file in ["cmdline", "environ"] {
        let content = std::fs::read(format!("/proc/{process}/{file}"))?;
        assert!(!content.is_empty());
        for key in &keys {
            assert!(!content.windows(key.len()).any(|it| it == key), "{file}");
        }
    }
    let environment = std::fs::read_to_string(format!("/proc/{process}/environ"))?;
    assert!(!environment.contains("PATH="), "{environment}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata("/run/wireguard")?.permissions().mode() & 0o777, 0o700);
    Ok(())
}

/// Nothing ties it to us: neither our process group, nor a pipe that breaks, nor a directory.
pub fn the_program_outlives_us() -> Outcome {
    let tunnel = Tunnel::connected()?;
    let process = tunnel.process()?;
    assert_eq!(nix::unistd::getpgid(Some(process))?, process);
    let target = |what: &str| -> Result<String> {
        let path = std::fs::read_link(format!("/proc/{process}/{what}")).during(what)?;
        Ok(path.display().to_string())
    };
    assert_eq!(target("cwd")?, "/");
    assert_eq!((target("fd/0")?, target("fd/1")?), ("/dev/null".into(), "/dev/null".into()));
    assert!(target("fd/2")?.starts_with("/memfd:"), "{}", target("fd/2")?);
    // What it says from now on cannot fill the memory.
    let said = std::fs::OpenOptions::new().append(true).open(format!("/proc/{process}/fd/2"))?;
    assert!(std::io::Write::write(&mut &said, b"more").is_err());
    Ok(())
}

pub fn without_wireguard_in_the_kernel_a_program_is_used() -> Outcome {
    let mut tunnel = Tunnel::with(|config| config.tunnel.backend = Backend::Auto)?;
    if tunnel.lab.internet.ip("link add probe type wireguard").is_ok() {
        println!("this kernel has WireGuard");
        return Ok(());
    }
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    // Another backend from now on: a second device with our key may not stay.
    tunnel.config.tunnel.backend = Backend::Kernel;
    tunnel.device = device(&tunnel.config)?;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Foreign);
    assert!(tunnel.ensure().is_err());
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Absent);
    assert!(!tunnel.lab.client.has_link("wg0-foreign1")?);
    Ok(())
}

pub fn nothing_is_left_behind() -> Outcome {
    let tunnel = Tunnel::new()?;
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).map(Iterator::count);
    tunnel.ensure()?;
    tunnel.ask(Device::remove_link)?;
    let before = (count("fd")?, count("task")?);
    for _ in 0..10 {
        tunnel.ensure()?;
        tunnel.ask(|device| device.set_peer(tunnel.first()))?;
        tunnel.ask(Device::remove_link)?;
    }
    eventually("no child is left, not even a zombie", || {
        tunnel.ask(Device::link)?;
        Ok(children()?.is_empty())
    })?;
    assert_eq!((count("fd")?, count("task")?), before);
    assert_eq!(std::fs::read_dir("/run/wireguard")?.count(), 0);
    Ok(())
}

pub fn without_ipv6_the_tunnel_has_ipv4() -> Outcome {
    let tunnel = Tunnel::new()?;
    tunnel.lab.client.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    for _ in 0..2 {
        let link = tunnel.ensure()?;
        assert_eq!(link.degraded.len(), 1);
        assert!(link.degraded[0].contains(&TUNNEL_V6.to_string()), "{:?}", link.degraded);
    }
    assert_eq!(tunnel.addresses(TUNNEL_LINK)?.lines().count(), 1);
    tunnel.connect(tunnel.first())?;
    Ok(())
}

pub fn what_is_missing_is_said() -> Outcome {
    let said = |tunnel: &Tunnel| -> Result<String> {
        tunnel
            .ask(|device| Ok(device.ensure_link().map_err(|error| error.to_string())))?
            .err()
            .ok_or_else(|| killswitch::lab::Error::new("it worked"))
    };
    let mut tunnel = Tunnel::with(|config| config.tunnel.backend = Backend::Kernel)?;
    // This kernel may have it.
    let in_kernel = tunnel.lab.internet.ip("link add probe type wireguard").is_ok();
    if !in_kernel {
        assert!(said(&tunnel)?.contains("this kernel has no WireGuard"));
    }
    tunnel.config.tunnel.backend = Backend::Userspace;
    for (program, words) in [
        ("/nonexistent", "No such file"),
        ("/bin/false", "it ended (exit status: 1)"),
        ("/bin/ls", "unrecognized option"),
    ] {
        tunnel.device = Device::new(&tunnel.config).with_program(PathBuf::from(program));
        // ls -f wg0: no such file, on standard error.
        let said = said(&tunnel)?;
        let words = if program == "/bin/ls" { "wg0" } else { words };
        assert!(said.contains(program) && said.contains(words), "{said}");
    }
    let refused = tunnel.ask(|device| Ok(device.set_peer(tunnel.first())))?;
    assert!(matches!(refused, Err(Error::NoLink(_))));
    std::fs::metadata("/run/wireguard").during("the directory of sockets")?;
    Ok(())
}

/// While the program starts, another link may take the tunnel's name.
pub fn a_card_that_takes_the_name_meanwhile_gets_no_address() -> Outcome {
    let mut tunnel = Tunnel::new()?;
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("wireguard");
    std::fs::write(
        &program,
        format!(
            "#!/bin/sh
            PATH=/usr/sbin:/usr/bin:/sbin:/bin
            cd /var/run/wireguard
            {} -f other &
            while [ ! -S other.sock ]; do sleep 0.01; done
            ip link set {CLIENT_LINK} name {TUNNEL_LINK}
            mv other.sock {TUNNEL_LINK}.sock
            wait",
            setup::wireguard()?.display()
        ),
    )?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let before = tunnel.addresses(CLIENT_LINK)?.replace(CLIENT_LINK, TUNNEL_LINK);
    let ours =
        std::mem::replace(&mut tunnel.device, Device::new(&tunnel.config).with_program(program));
    let outcome = tunnel.ask(|device| Ok(device.ensure_link()))?;
    assert!(matches!(outcome, Err(Error::NoLink(_))), "{outcome:?}");
    assert_eq!(tunnel.addresses(TUNNEL_LINK)?, before);
    tunnel.device = ours;
    tunnel.lab.client.output("pkill", &["-f", "killswitch-wireguard -f other"])?;
    tunnel.lab.client.ip(&format!("link set {TUNNEL_LINK} name {CLIENT_LINK}"))?;
    // The next try finds the name free.
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    Ok(())
}
