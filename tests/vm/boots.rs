//! From power-on to power-off: no frame is sent that must not be, from the first to the last.

use std::thread::sleep;
use std::time::{Duration, Instant};

use killswitch::lab::harness::{Failed, Outcome};

use super::Scenario;
use super::plan::{Configurator, Plan, Suite};
use super::record::{self, Seen};
use super::stage::Stage;
use super::ways::{self, Excused, WHERE_ANYBODY_MAY_FLUSH, WHERE_ANYBODY_MAY_FLUSH_AT_SHUTDOWN};

pub const SCENARIOS: &[Scenario] = &[
    ("boot_networkd", |suite, name| {
        power_on_to_off(suite, name, &networkd(), "systemctl is-active systemd-networkd", &[])
    }),
    ("boot_network_manager", |suite, name| {
        let managed = "nmcli -g GENERAL.STATE device show eth0 | grep '^100 '
                       ! systemctl is-active systemd-networkd";
        power_on_to_off(suite, name, &Plan::guarded(Configurator::NetworkManager), managed, &[])
    }),
    ("boot_ifupdown", |suite, name| {
        let managed = "ifquery --state eth0
                       ! systemctl is-active systemd-networkd";
        power_on_to_off(suite, name, &Plan::guarded(Configurator::Ifupdown), managed, &[])
    }),
    ("boot_with_debians_initrd", |suite, name| {
        // Debian's leaves this behind, the small one does not.
        let left = "test -d /run/initramfs";
        power_on_to_off(suite, name, &Plan { stock_initrd: true, ..networkd() }, left, &[])
    }),
    ("boot_with_nftables_service", |suite, name| {
        let plan = networkd().with("systemd.wants=nftables.service");
        // It has flushed, and loaded Debian's example. Being stopped it flushes again.
        let ran = "systemctl is-active nftables
                   nft list table inet filter";
        power_on_to_off(suite, name, &plan, ran, WHERE_ANYBODY_MAY_FLUSH_AT_SHUTDOWN)
    }),
    ("boot_with_firewalld", |suite, name| {
        let plan = networkd().with("systemd.wants=firewalld.service");
        let ran = format!(
            "firewall-cmd --state
             {LOOSE_RPFILTER}
             nft list table inet firewalld"
        );
        power_on_to_off(suite, name, &plan, &ran, WHERE_ANYBODY_MAY_FLUSH)
    }),
    ("boot_with_a_read_only_root", |suite, name| {
        let plan = networkd().with("ROOT_RO=1 systemd.mask=systemd-remount-fs.service");
        power_on_to_off(suite, name, &plan, "! touch /etc/written", &[])
    }),
    ("boot_with_dead_servers", dead_servers),
    ("boot_twice_with_one_disk", twice),
    ("hibernate_and_resume", hibernate_and_resume),
];

/// From 7.1 on firewalld's strict filter drops IPv6 out of a tunnel (SECURITY.md, limits).
const LOOSE_RPFILTER: &str = "uname -r | grep '^[56]' || \
    grep IPv6_rpfilter=loose /etc/firewalld/firewalld.conf || \
    { sed -i s/^IPv6_rpfilter=.*/IPv6_rpfilter=loose/ /etc/firewalld/firewalld.conf && \
      systemctl restart firewalld; }";

fn networkd() -> Plan {
    Plan::guarded(Configurator::Networkd)
}

/// `proof`: what shows, line for line, that the machine is what the scenario says, with the kill switch
/// and without.
fn power_on_to_off(
    suite: Suite,
    name: &str,
    plan: &Plan,
    proof: &str,
    excused: Excused,
) -> Outcome {
    let control = control(suite, plan, |stage| prove(stage, proof))?;
    let mut stage = Stage::boot(suite, plan)?;
    prove(&mut stage, proof)?;
    connect_and_end(stage, suite, name, control, excused)
}

fn prove(stage: &mut Stage, proof: &str) -> killswitch::lab::Result<()> {
    proof.lines().try_for_each(|line| stage.machine.wait_for(line.trim()).map(drop))
}

/// Nobody answers for a while; then the tunnel comes up by itself. Minutes: VM_DEAD_SERVERS_S.
fn dead_servers(suite: Suite, name: &str) -> Outcome {
    let plan = networkd();
    let seconds = std::env::var("VM_DEAD_SERVERS_S").ok().and_then(|text| text.parse().ok());
    let mut stage = Stage::boot_with(suite, &plan, |lab| {
        lab.servers.iter().try_for_each(killswitch::lab::VpnServer::silence)
    })?;
    stage.machine.wait_for("killswitch status; [ $? = 10 ]")?;
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(30));
    let control = control(suite, &plan, |_| Ok(()))?;
    sleep(end.saturating_duration_since(Instant::now()));
    stage.lab.servers.iter().try_for_each(killswitch::lab::VpnServer::end_silence)?;
    connect_and_end(stage, suite, name, control, &[])
}

/// As a live system, or a machine that loses power: the second boot knows nothing of the first.
fn twice(suite: Suite, name: &str) -> Outcome {
    let plan = networkd();
    let lose_power = |stage: &mut Stage| {
        // Without a farewell.
        stage.machine.reboot_by(|machine| machine.press("system_reset"))
    };
    let control = control(suite, &plan, lose_power)?;
    let mut stage = Stage::boot(suite, &plan)?;
    stage.wait_until_connected()?;
    lose_power(&mut stage)?;
    connect_and_end(stage, suite, name, control, &[])
}

/// S4: memory is on the disk, and Debian's initrd finds it there.
fn hibernate_and_resume(suite: Suite, name: &str) -> Outcome {
    let plan = Plan { stock_initrd: true, swap: true, ..networkd().with("resume=/dev/vdc") };
    let control = control(suite, &plan, hibernate)?;
    let mut stage = Stage::boot(suite, &plan)?;
    stage.wait_until_connected()?;
    hibernate(&mut stage)?;
    connect_and_end(stage, suite, name, control, &[])
}

fn hibernate(stage: &mut Stage) -> killswitch::lab::Result<()> {
    stage.machine.run(
        "set -e; swapon /dev/vdc; mkdir -p /etc/systemd/sleep.conf.d
         printf '[Sleep]\\nHibernateMode=reboot\\n' >/etc/systemd/sleep.conf.d/vm.conf",
    )?;
    stage.machine.begin("systemctl hibernate >/run/said 2>&1")?;
    let waited = stage.machine.wait_for_event("RESET");
    waited.map_err(|error| {
        stage.explained(&error, "cat /run/said; journalctl --no-pager --boot -n 60")
    })?;
    // It is in what was resumed, not in what booted.
    stage.machine.wait_for_another_shell("dmesg | grep 'hibernation exit'")
}

/// Connects by itself, is shut down, and has been silent since power-on.
fn connect_and_end(
    mut stage: Stage,
    suite: Suite,
    name: &str,
    control: u64,
    excused: Excused,
) -> Outcome {
    let back = stage.wait_until_connected()?;
    stage.power_off()?;
    let excused =
        stage.nothing_leaked_but("power-on to power-off", &ways::excused(excused, suite))?;
    Ok(record::write(suite, name, &Seen::Held { control, excused, back })?)
}

/// The same without the kill switch: its senders are heard.
fn control(
    suite: Suite,
    plan: &Plan,
    meanwhile: impl FnOnce(&mut Stage) -> killswitch::lab::Result<()>,
) -> Result<u64, Failed> {
    let mut stage = Stage::boot(suite, &plan.control())?;
    stage.machine.wait_for("ping -c1 -W2 -q 203.0.113.10")?;
    let up = stage.leaked("power-on to up", &[ways::SENDERS])?;
    meanwhile(&mut stage)?;
    let then = stage.leaked("what the scenario is about", &[ways::SENDERS])?;
    stage.power_off()?;
    let down = stage.leaked("shutdown", &[])?;
    Ok(up + then + down)
}
