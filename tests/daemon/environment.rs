//! What a machine may lack: still locked, still reconnects, and it says what is degraded.

use killswitch::lab::harness::{Outcome, Test, eventually};

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("read_only_run_and_var", read_only),
    ("full_run", full),
    ("no_ipv6", no_ipv6),
    ("an_unusable_configuration_is_the_strictest_lock", unusable),
];

/// There is no D-Bus and no systemd-resolved in the laboratory at all.
fn read_only() -> Outcome {
    let mut stage = Stage::set()?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    // A userspace WireGuard needs its socket; the kernel's would not.
    stage.daemon.again_after(
        &stage.lab,
        "mkdir -p /run/wireguard
         mount -t tmpfs none /run/wireguard
         mount -o remount,bind,ro /run
         mount --bind /var /var
         mount -o remount,bind,ro /var",
    )?;
    works_and_recovers(&mut stage, "with read-only /run and /var")?;
    let log = stage.daemon.log()?;
    assert!(log.contains("degraded: control socket"), "it does not say so: {log}");
    Ok(())
}

fn full() -> Outcome {
    let mut stage = Stage::set()?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    stage.daemon.again_after(
        &stage.lab,
        "mkdir -p /run/wireguard
         mount -t tmpfs none /run/wireguard
         mkdir -p /run/killswitch
         mount -t tmpfs -o size=4k,nr_inodes=1 none /run/killswitch",
    )?;
    works_and_recovers(&mut stage, "with a full /run/killswitch")
}

fn works_and_recovers(stage: &mut Stage, how: &str) -> Outcome {
    stage.wait_for_traffic(how)?;
    assert_eq!(stage.status()?["intact"], true);
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    stage.wait_for_traffic(&format!("losing the link {how}"))?;
    stage.nothing_leaked(how)?;
    Ok(())
}

fn no_ipv6() -> Outcome {
    let mut stage = Stage::set()?;
    stage.lab.client.output("ip", &["link", "delete", "wg0"])?;
    for which in ["all", "default"] {
        stage.lab.client.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    stage.daemon.again(&stage.lab)?;
    eventually("traffic without IPv6", || stage.has_traffic())?;
    let status = stage.status()?;
    assert_eq!(status["locked"], true, "{status:#}");
    assert!(status["degraded"].to_string().contains("IPv6"), "{status:#}");
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
