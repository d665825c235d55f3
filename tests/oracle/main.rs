//! The model against an oracle written from the design, without a kernel: many cases.

#[path = "../judges/model.rs"]
mod model;
#[path = "../judges/oracle.rs"]
mod oracle;
#[path = "../judges/packet.rs"]
mod packet;
#[path = "../judges/packets.rs"]
mod packets;
#[path = "../judges/policies.rs"]
mod policies;
#[path = "../judges/wire.rs"]
mod wire;

mod compiler;
mod plan;

use killswitch::dice::Dice;
use killswitch::policy::Policy;
use proptest::prelude::*;

use crate::packet::{Link, REAL};
use crate::packets::Step;

/// Links that the test of the kernel cannot have.
const IMAGINED: [Link; 8] = [
    Link { name: "wg0", kind: Some("wireguard") },
    Link { name: "wg0", kind: Some("veth") },
    Link { name: "wg0", kind: None },
    Link { name: "wg01", kind: Some("wireguard") },
    Link { name: "wg", kind: Some("tun") },
    Link { name: "nic", kind: None },
    Link { name: "br-", kind: Some("bridge") },
    Link { name: "vnet", kind: Some("tun") },
];

fn links() -> Vec<Link> {
    [&REAL[..], &IMAGINED].concat()
}

/// Packets for each policy.
const PACKETS: usize = 300;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn model_and_oracle_agree(seed in any::<u64>()) {
        let mut dice = Dice::new(seed);
        let policy = policies::policy(&mut dice);
        let ruleset = model::ruleset(&policy);
        let steps = packets::steps(&mut dice, &policy, &links(), PACKETS);
        for (step, wanted) in oracle::decide(&policy, steps) {
            let said = model::may_pass(&ruleset, &step.packet, step.way);
            prop_assert!(said == wanted, "{}", difference(&policy, &step, wanted));
        }
    }
}

fn difference(policy: &Policy, step: &Step, wanted: bool) -> String {
    let policy = shrunk(policy, |policy| {
        let said = model::may_pass(&model::ruleset(policy), &step.packet, step.way);
        said != oracle::may_pass(policy, &step.packet, step.way)
    });
    format!("oracle: {wanted}, model: {}\n{step:#?}\n{policy:#?}", !wanted)
}

/// Takes something from a policy, which then lets less pass.
type Removal = (&'static str, fn(&mut Policy));
const SMALLER: [Removal; 9] = [
    ("servers", |it| it.servers.clear()),
    ("lan", |it| {
        it.lan.clear();
        it.lan_dns.clear();
    }),
    ("lan dns", |it| it.lan_dns.clear()),
    ("ntp", |it| it.ntp.clear()),
    ("inbound", |it| it.inbound.clear()),
    ("internal", |it| it.internal.clear()),
    ("internal ports", |it| it.internal_ports.clear()),
    ("forwarding", |it| it.forward_into_tunnel = false),
    ("dhcp", |it| it.dhcp = false),
];
/// Of a difference between model and oracle: without it more may pass.
const NO_ROUTING_GUARD: Removal = ("routing guard", |it| it.routing_guard = false);

/// The policy without all that the difference does not need.
fn shrunk(policy: &Policy, differs: impl Fn(&Policy) -> bool) -> Policy {
    let mut policy = policy.clone();
    for (_, change) in SMALLER.iter().chain([&NO_ROUTING_GUARD]) {
        let mut candidate = policy.clone();
        change(&mut candidate);
        if differs(&candidate) {
            policy = candidate;
        }
    }
    policy
}

/// A generator that only ever asks for what is forbidden, or allowed, would prove nothing.
#[test]
fn packets_lie_on_both_sides() {
    let mut dice = Dice::new(1);
    let mut counts = std::collections::BTreeMap::<_, [usize; 2]>::new();
    for _ in 0..200 {
        let policy = policies::policy(&mut dice);
        for step in packets::steps(&mut dice, &policy, &REAL, PACKETS) {
            let name = format!("{:?}", step.way);
            let way = name.split('(').next().unwrap().to_owned();
            let passes = oracle::may_pass(&policy, &step.packet, step.way);
            counts.entry(way).or_default()[usize::from(passes)] += 1;
        }
    }
    for (way, [dropped, passed]) in counts {
        let total = dropped + passed;
        assert!(dropped * 20 > total && passed * 20 > total, "{way}: {dropped}, {passed}");
    }
}
