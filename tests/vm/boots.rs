//! From power-on to power-off: no frame is sent that must not be, from the first to the last.

use std::thread::sleep;
use std::time::Duration;

use killswitch::lab::harness::Outcome;

use super::Scenario;
use super::record::{self, Seen};
use super::stage::{Manager, Plan, Stage, Suite};

pub const SCENARIOS: &[Scenario] = &[
    ("boot_networkd", |suite, name| power_on_to_off(suite, name, &networkd())),
    ("boot_network_manager", |suite, name| {
        power_on_to_off(suite, name, &Plan::guarded(Manager::NetworkManager))
    }),
    ("boot_ifupdown", |suite, name| {
        power_on_to_off(suite, name, &Plan::guarded(Manager::Ifupdown))
    }),
    ("boot_with_debians_initrd", |suite, name| {
        power_on_to_off(suite, name, &Plan { stock_initrd: true, ..networkd() })
    }),
    ("boot_with_nftables_service", |suite, name| {
        power_on_to_off(suite, name, &networkd().with("systemd.wants=nftables.service"))
    }),
    ("boot_with_firewalld", |suite, name| {
        power_on_to_off(suite, name, &networkd().with("systemd.wants=firewalld.service"))
    }),
    ("boot_with_a_read_only_root", |suite, name| {
        power_on_to_off(
            suite,
            name,
            &networkd().with("ROOT_RO=1 systemd.mask=systemd-remount-fs.service"),
        )
    }),
    ("boot_with_dead_servers", dead_servers),
    ("boot_twice_with_one_disk", twice),
];

fn networkd() -> Plan {
    Plan::guarded(Manager::Networkd)
}

fn power_on_to_off(suite: Suite, name: &str, plan: &Plan) -> Outcome {
    let control = control(suite, plan)?;
    let stage = Stage::boot(suite, plan)?;
    connect_and_end(stage, suite, name, control)
}

/// Nobody answers for a while; then the tunnel comes up by itself. Minutes: VM_DEAD_SERVERS_S.
fn dead_servers(suite: Suite, name: &str) -> Outcome {
    let plan = networkd();
    let control = control(suite, &plan)?;
    let seconds = std::env::var("VM_DEAD_SERVERS_S").ok().and_then(|text| text.parse().ok());
    let mut stage = Stage::boot_with(suite, &plan, |lab| {
        lab.servers.iter().try_for_each(killswitch::lab::VpnServer::silence)
    })?;
    stage.machine.wait_for("killswitch status; [ $? = 10 ]")?;
    sleep(Duration::from_secs(seconds.unwrap_or(30)));
    stage.lab.servers.iter().try_for_each(killswitch::lab::VpnServer::end_silence)?;
    connect_and_end(stage, suite, name, control)
}

/// As a live system, or a machine that loses power: the second boot knows nothing of the first.
fn twice(suite: Suite, name: &str) -> Outcome {
    let plan = networkd();
    let control = control(suite, &plan)?;
    let mut stage = Stage::boot(suite, &plan)?;
    stage.wait_until_connected()?;
    // Power lost, without a farewell.
    stage.machine.reboot_by(|machine| machine.press("system_reset"))?;
    connect_and_end(stage, suite, name, control)
}

/// Connects by itself, is shut down, and has been silent since power-on.
fn connect_and_end(mut stage: Stage, suite: Suite, name: &str, control: u64) -> Outcome {
    let back = stage.wait_until_connected()?;
    stage.power_off()?;
    stage.nothing_leaked("power-on to power-off")?;
    Ok(record::write(suite, name, &Seen::Held { control, excused: 0, back })?)
}

/// The same without the kill switch: its senders are heard.
fn control(suite: Suite, plan: &Plan) -> Result<u64, killswitch::lab::harness::Failed> {
    let mut stage = Stage::boot(suite, &plan.control())?;
    stage.machine.wait_for("ping -c1 -W2 -q 203.0.113.10")?;
    let up = stage.leaked("power-on to up")?;
    stage.power_off()?;
    Ok(up + stage.leaked("shutdown")?)
}
