//! Replacing the rules under a flood: threat 26.
//!
//! One layer at a time, so that no other hides a gap: the table under a flood of UDP without the
//! egress guard, the guard under a flood of frames that no other layer sees.

use std::time::{Duration, Instant};

use killswitch::lab::harness::Outcome;
use killswitch::lab::traffic::{Flood, Flooded};
use killswitch::lab::{Capture, Context, Error, Lab, Report, Result};
use killswitch::lock;
use killswitch::policy::Policy;

use crate::common::LockedLab;

/// Another program brings the tunnel up: then there is no routing guard that would hide a gap.
const EXTERNAL: &str = "[tunnel]
kind = \"external\"
interface = \"wg0\"
addresses = [\"10.64.0.2/32\", \"fd00:64::2/128\"]
[[server]]
name = \"one\"
endpoints = [\"198.51.100.7:51820\", \"198.51.100.135:51820\"]
";

/// Chains, rules, sets and elements differ from [`EXTERNAL`]'s.
const MORE: &str = "endpoints = [\"198.51.100.7:51820\", \"198.51.100.7:443\"]
[allow]
ntp = [\"203.0.113.77\"]
lan = [\"192.168.9.0/24\", \"fd00:9::/64\"]
inbound = [{ proto = \"tcp\", port = 22, from = [\"192.168.9.0/24\"] }]
[forward]
mode = \"tunnel\"
";

type Start = fn(&Lab) -> Result<Flood>;

/// The two configurations' policies.
fn policies(it: &LockedLab, egress_guard: bool) -> Result<[Policy; 2]> {
    let mut policies = Vec::new();
    for text in [more(), EXTERNAL.to_owned()] {
        it.write("killswitch.toml", &text)?;
        policies.push(Policy { egress_guard, ..it.policy()? });
    }
    let [more, plain] = policies.try_into().map_err(|_| Error::new("two policies"))?;
    assert!(!plain.routing_guard);
    Ok([more, plain])
}

fn more() -> String {
    let head = EXTERNAL.lines().take_while(|line| !line.starts_with("endpoints"));
    head.map(|line| format!("{line}\n")).collect::<String>() + MORE
}

/// What leaves while `change` runs under a flood, how much was offered, and for how long.
fn flooded(
    it: &LockedLab,
    start: Start,
    change: impl FnOnce() -> Result<()>,
) -> Result<(Report, Flooded, Duration)> {
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    let (began, flood) = (Instant::now(), start(&it.lab)?);
    let outcome = change();
    let (flooded, took) = (flood.stop()?, began.elapsed());
    outcome?;
    Ok((capture.stop()?, flooded, took))
}

/// In this process, as fast as it goes.
fn reload(lab: &Lab, policies: &[Policy; 2], times: usize) -> Result<()> {
    lab.client.run(|| {
        for policy in policies.iter().cycle().take(times) {
            let outcome = lock::lock(policy).during("reload")?;
            if !outcome.changed {
                return Err(Error::new("a reload changed nothing"));
            }
        }
        Ok(())
    })?
}

/// A flood that would not leave anyhow shows nothing.
fn leaves_without_the_lock(it: &LockedLab, start: Start) -> Result<()> {
    let pause = || -> Result<()> {
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    };
    let (report, ..) = flooded(it, start, pause)?;
    match report.leaked_total() > 1000 {
        true => Ok(()),
        false => Err(Error::new(format!("the flood is not seen: {}", report.summary(20)))),
    }
}

fn nothing_leaks(start: Start, egress_guard: bool, times: usize) -> Outcome {
    let mut it = LockedLab::new()?;
    // One of the two configurations allows a LAN, and with it reports of group membership.
    it.expectation.groups = true;
    leaves_without_the_lock(&it, start)?;
    let policies = policies(&it, egress_guard)?;
    reload(&it.lab, &policies, 2)?;
    it.flush()?;
    let (report, flooded, took) = flooded(&it, start, || reload(&it.lab, &policies, times))?;
    let offered = flooded.sent + flooded.refused;
    let rate = offered as f64 / took.as_secs_f64();
    println!("{times} reloads in {took:.1?}: {offered} offered, {rate:.0} a second");
    if report.leaked_total() + report.lost > 0 {
        return Err(format!("leaked {}, lost {}", report.summary(20), report.lost).into());
    }
    // Where nothing is offered, nothing can leak.
    if offered < 100 * times as u64 {
        return Err(format!("only {offered} offered to {times} reloads").into());
    }
    Ok(())
}

pub fn t26_table_reloaded_500_times_under_a_flood() -> Outcome {
    nothing_leaks(Flood::datagrams, false, 500)
}

pub fn t26_egress_guard_reloaded_500_times_under_a_flood() -> Outcome {
    nothing_leaks(Flood::frames, true, 500)
}

/// Ten thousand, as the one below: minutes each.
pub fn t26_table_reloaded_10000_times_under_a_flood_slow() -> Outcome {
    nothing_leaks(Flood::datagrams, false, 10_000)
}

pub fn t26_egress_guard_reloaded_10000_times_under_a_flood_slow() -> Outcome {
    nothing_leaks(Flood::frames, true, 10_000)
}

/// As people do it.
pub fn t26_reloaded_by_the_program_under_a_flood() -> Outcome {
    let mut it = LockedLab::new()?;
    it.expectation.groups = true;
    leaves_without_the_lock(&it, Flood::datagrams)?;
    it.write("killswitch.toml", EXTERNAL)?;
    it.lock()?;
    let times = 40;
    let (report, flooded, _) = flooded(&it, Flood::datagrams, || {
        for text in [more(), EXTERNAL.to_owned()].iter().cycle().take(times) {
            it.write("killswitch.toml", text)?;
            let said = it.killswitch_ok(&["reload"])?;
            if said.contains("nothing had to be changed") || said.contains("degraded") {
                return Err(Error::new(said));
            }
        }
        Ok(())
    })?;
    assert!(flooded.sent + flooded.refused > 100 * times as u64, "{flooded:?}");
    if report.leaked_total() + report.lost > 0 {
        return Err(format!("leaked {}, lost {}", report.summary(20), report.lost).into());
    }
    Ok(())
}

/// The test can fail: rules that are deleted and loaded anew, without a last drop, leak.
pub fn t26_deleting_and_creating_leaks() -> Outcome {
    const NAIVE: &str = "table inet naive {
        chain output {
            type filter hook output priority 0; policy drop;
            oif lo accept
        }
    }\n";
    let it = LockedLab::new()?;
    it.lab.client.feed("nft", &["-f", "-"], NAIVE)?;
    let nft = |text: &str| it.lab.client.feed("nft", &["-f", "-"], text);
    let (report, ..) = flooded(&it, Flood::datagrams, || {
        for _ in 0..20 {
            nft("delete table inet naive\n")?;
            nft(NAIVE)?;
        }
        Ok(())
    })?;
    if report.leaked_total() == 0 {
        return Err("two transactions did not leak".into());
    }
    Ok(())
}
