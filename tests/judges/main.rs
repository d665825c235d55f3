//! Three judges on the same packets: the model, an oracle written from the design, the kernel. The
//! leak test's own judge, and the filter of its capture, must agree with them on every frame that
//! leaves a machine without a lock.
//!
//! `JUDGES_PACKETS` (20000) and `JUDGES_SEED` may be set.

mod kernel;
mod leaktest;
mod model;
mod oracle;
mod packet;
mod packets;
mod policies;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use killswitch::dice::Dice;
use killswitch::lab::harness::{self, Failed, Outcome};
use killswitch::policy::Policy;

use crate::kernel::Machine;
use crate::leaktest::Watch;
use crate::packet::{Body, ICMP, ICMPV6, Ports, REAL, TUNNEL, Way};
use crate::packets::Step;

/// Packets for each policy.
const PACKETS: usize = 300;
/// New machines after so many policies: conntrack's tables grow.
const POLICIES: usize = 60;

fn the_judges_agree() -> Outcome {
    // The same for everybody, so that a failure is the change's and not the day's.
    let seed = setting("JUDGES_SEED", || 0x6b73)?;
    let wanted = setting("JUDGES_PACKETS", || 20_000)? as usize;
    println!("JUDGES_SEED={seed} JUDGES_PACKETS={wanted}");
    let mut trial = Trial::new(seed)?;
    while trial.judged < wanted {
        trial.hear_policy()?;
    }
    trial.conclude()
}

fn setting(name: &str, otherwise: impl FnOnce() -> u64) -> Result<u64, Failed> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse().map_err(|error| format!("{name}: {error}"))?),
        Err(_) => Ok(otherwise()),
    }
}

struct Trial {
    dice: Dice,
    locked: Machine,
    open: Machine,
    policies: usize,
    judged: usize,
    not_carried: usize,
    /// (dropped, passed), by way.
    tally: BTreeMap<&'static str, [usize; 2]>,
    /// Of this pair of machines: conntrack remembers them.
    connections: BTreeSet<Connection>,
    differences: Vec<String>,
    /// (not leaked, leaked), as the leak test says.
    watched: [usize; 2],
}

/// Both ends and the protocol, whichever way.
type Connection = (u8, BTreeSet<(std::net::IpAddr, u16)>);

impl Trial {
    fn new(seed: u64) -> Result<Self, Failed> {
        Ok(Trial {
            dice: Dice::new(seed),
            locked: Machine::new()?,
            open: Machine::new()?,
            policies: 0,
            judged: 0,
            not_carried: 0,
            tally: BTreeMap::new(),
            connections: BTreeSet::new(),
            differences: Vec::new(),
            watched: [0, 0],
        })
    }

    fn hear_policy(&mut self) -> Outcome {
        if self.policies.is_multiple_of(POLICIES) && self.policies > 0 {
            self.locked = Machine::new()?;
            self.open = Machine::new()?;
            self.connections.clear();
        }
        self.policies += 1;
        let policy = policies::policy(&mut self.dice);
        let steps = self.steps(&policy);
        self.locked.lock(&policy).map_err(|error| format!("{error}\n{policy:#?}"))?;
        let mut watch = Watch::start(&self.open, &policy)?;
        let carried = self.open.carry(&steps, false)?;
        self.differences.extend(watch.differences(&policy, &steps, &carried)?);
        (0..2).for_each(|it| self.watched[it] += watch.told[it]);
        let (steps, wanted): (Vec<Step>, Vec<bool>) =
            oracle::decide(&policy, steps).into_iter().unzip();
        let passed = self.locked.carry(&steps, true)?;
        let ruleset = model::ruleset(&policy);
        for (at, step) in steps.iter().enumerate() {
            // What follows a packet that went elsewhere may follow another.
            if !carried[at] || step.after.is_some_and(|first| !carried[first]) {
                self.not_carried += 1;
                continue;
            }
            self.judged += 1;
            self.tally.entry(name(step.way)).or_default()[usize::from(wanted[at])] += 1;
            let by_model = model::may_pass(&ruleset, &step.packet, step.way);
            if by_model != wanted[at] || passed[at] != wanted[at] {
                self.differences.push(format!(
                    "oracle {}, model {by_model}, kernel {}\n{:?}\nafter {:?}\n{policy:?}",
                    wanted[at],
                    passed[at],
                    step,
                    step.after.map(|first| &steps[first]),
                ));
            }
        }
        Ok(())
    }

    /// None of which belongs to a connection that another began.
    fn steps(&mut self, policy: &Policy) -> Vec<Step> {
        let mut kept: Vec<Step> = Vec::new();
        // Where each is now; `None`: left out.
        let mut moved: Vec<Option<usize>> = Vec::new();
        for mut step in packets::steps(&mut self.dice, policy, &REAL, PACKETS) {
            let first = step.after.map(|at| moved[at]);
            let connections = connections(&step);
            let fits = match first {
                Some(first) => first.is_some(),
                None => connections.iter().all(|it| !self.connections.contains(it)),
            };
            if fits && kernel::can_carry(&step) {
                step.after = first.flatten();
                self.connections.extend(connections);
                moved.push(Some(kept.len()));
                kept.push(step);
            } else {
                moved.push(None);
            }
        }
        kept
    }

    fn conclude(self) -> Outcome {
        println!(
            "{} policies, {} packets judged, {} more that no network carries; {:?}; \
             by the leak test {:?}",
            self.policies, self.judged, self.not_carried, self.tally, self.watched
        );
        if !self.differences.is_empty() {
            let shown: Vec<_> = self.differences.iter().take(5).cloned().collect();
            let count = self.differences.len();
            return Err(format!("{count} differences\n{}", shown.join("\n\n")).into());
        }
        if self.not_carried * 3 > self.judged {
            return Err("too many packets never arrived even without a lock".into());
        }
        if self.watched.contains(&0) {
            return Err(
                format!("the leak test saw only one kind of frame: {:?}", self.watched).into()
            );
        }
        for (way, [dropped, passed]) in self.tally {
            if dropped == 0 || passed == 0 {
                return Err(format!("{way}: {dropped} dropped, {passed} passed").into());
            }
        }
        Ok(())
    }
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Sent(_) => "sent",
        Way::Received(_) => "received",
        Way::Forwarded(..) => "forwarded",
        Way::Frame(_) => "frame",
    }
}

/// As conntrack keeps it, before and after it takes the tunnel's address: two that are one in either
/// cannot both live. The kernel would drop the second, or change a port.
fn connections(step: &Step) -> Vec<Connection> {
    let packet = &step.packet;
    let ports = match packet.body {
        Body::Udp(ports, _) | Body::Tcp(ports) => ports,
        Body::Icmp(ICMP | ICMPV6, 0 | 8 | 128 | 129, _) | Body::Other(_) => {
            Ports { from: 0, to: 0 }
        }
        // Conntrack takes no half header.
        Body::Icmp(..) | Body::Cut(_) | Body::NotIp => return Vec::new(),
    };
    let mut sources = vec![packet.source];
    if matches!(step.way, Way::Sent(TUNNEL) | Way::Forwarded(_, TUNNEL)) {
        sources.push(packet::tunnel_address(packet.source));
    }
    let protocol = packet.protocol().unwrap_or_default();
    let to = (packet.destination, ports.to);
    sources.into_iter().map(|source| (protocol, [(source, ports.from), to].into())).collect()
}

fn main() -> std::process::ExitCode {
    harness::run(&[("the_judges_agree", the_judges_agree)])
}
