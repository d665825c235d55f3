//! What a machine may lack: still locked, still reconnects, and it says what is degraded.

use killswitch::lab::harness::{Failed, Outcome, Test, eventually};

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("read_only_run_and_var", read_only),
    ("full_run", full),
    ("no_ipv6", no_ipv6),
    ("an_unusable_configuration_is_the_strictest_lock", unusable),
];

/// There is no D-Bus and no systemd-resolved in the laboratory at all.
fn read_only() -> Outcome {
    let stage = with_mounts(
        "with read-only /run and /var",
        "mount -o remount,bind,ro /run
         mount --bind /var /var
         mount -o remount,bind,ro /var",
    )?;
    let log = stage.daemon.log()?;
    assert!(log.contains("degraded: control socket"), "it does not say so: {log}");
    Ok(())
}

fn full() -> Outcome {
    with_mounts(
        "with a full /run/killswitch",
        "mkdir -p /run/killswitch
         mount -t tmpfs -o size=4k,nr_inodes=1 none /run/killswitch",
    )?;
    Ok(())
}

/// A daemon in mounts of its own, made by these commands, connects, and again after it lost its link.
fn with_mounts(how: &str, commands: &str) -> Result<Stage, Failed> {
    let mut stage = Stage::set()?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    // A userspace WireGuard needs its socket; the kernel's would not.
    let all = format!("mkdir -p /run/wireguard\nmount -t tmpfs none /run/wireguard\n{commands}");
    stage.daemon.again_after(&stage.lab, &all)?;
    stage.wait_for_traffic(how)?;
    // The tunnel may be up before the lock has been looked at.
    eventually("the lock is whole", || Ok(stage.status()?["intact"] == true))?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    stage.wait_for_traffic(&format!("losing the link {how}"))?;
    stage.nothing_leaked(how)?;
    Ok(stage)
}

fn no_ipv6() -> Outcome {
    let mut stage = Stage::set()?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    for which in ["all", "default"] {
        stage.lab.client.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    stage.daemon.again(&stage.lab)?;
    eventually("traffic without IPv6", || stage.has_traffic())?;
    assert_eq!(stage.status()?["locked"], true);
    eventually("it says that there is no IPv6", || {
        Ok(stage.status()?["degraded"].to_string().contains("IPv6"))
    })?;
    stage.nothing_leaked("without IPv6")?;
    Ok(())
}

fn unusable() -> Outcome {
    let mut stage = Stage::set()?;
    let good = std::fs::read_to_string(&stage.configuration)?;
    std::fs::write(&stage.configuration, "[lokc]\n")?;
    stage.daemon.again(&stage.lab)?;
    eventually("the strictest lock", || {
        let status = stage.status()?;
        Ok(status["daemon"] == true && status["tunnel"].is_null() && status["intact"] == true)
    })?;
    assert!(!stage.has_traffic()?, "nothing leaves");
    stage.nothing_leaked("a configuration that cannot be used")?;
    std::fs::write(&stage.configuration, good)?;
    let output = stage.ask(&["reload", "--yes"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stage.wait_for_traffic("mending the file")?;
    stage.nothing_leaked("mending the file")?;
    Ok(())
}
