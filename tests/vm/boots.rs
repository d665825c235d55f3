//! From power-on to power-off.

use killswitch::lab::harness::Outcome;

use super::Scenario;
use super::stage::{Manager, Plan, Stage, Suite};

pub const SCENARIOS: &[Scenario] = &[
    ("boot_networkd", |suite| power_on_to_off(suite, &Plan::guarded(Manager::Networkd))),
    ("boot_network_manager", |suite| {
        power_on_to_off(suite, &Plan::guarded(Manager::NetworkManager))
    }),
    ("boot_ifupdown", |suite| power_on_to_off(suite, &Plan::guarded(Manager::Ifupdown))),
    ("boot_stock_initrd", |suite| {
        power_on_to_off(suite, &Plan { stock_initrd: true, ..Plan::guarded(Manager::Networkd) })
    }),
];

fn power_on_to_off(suite: Suite, plan: &Plan) -> Outcome {
    control(suite, plan)?;
    let mut stage = Stage::boot(suite, plan)?;
    let took = stage.wait_until_connected()?;
    stage.machine.begin("systemctl poweroff")?;
    stage.machine.wait_for_power_off()?;
    stage.nothing_leaked("power-on to power-off")?;
    println!("connected after {} ms", took.as_millis());
    Ok(())
}

/// The same without the kill switch: its senders are heard.
fn control(suite: Suite, plan: &Plan) -> Outcome {
    let mut stage = Stage::boot(suite, &plan.control())?;
    stage.machine.wait_for("ping -c1 -W2 -q 203.0.113.10")?;
    stage.machine.begin("systemctl poweroff")?;
    stage.machine.wait_for_power_off()?;
    println!("the control leaked {} frames", stage.leaked("power-on to power-off")?);
    Ok(())
}
