//! The judge of `leaktest`, which sees nothing but frames on a link.

use std::collections::BTreeMap;

use killswitch::lab::{Context, Result};
use killswitch::leaktest::capture::Capture;
use killswitch::leaktest::frame::Frame;
use killswitch::leaktest::judge::{Judgement, judge};
use killswitch::policy::Policy;

use crate::kernel::{self, Identity, Machine};
use crate::oracle;
use crate::packet::{NIC, Packet, Way};
use crate::packets::Step;

/// Captures what leaves a machine without a lock, as the leak test does.
pub struct Watch {
    capture: Capture,
    link: u32,
    /// How many of what left did not leak, and how many did.
    pub told: [usize; 2],
}

impl Watch {
    pub fn start(machine: &Machine, policy: &Policy) -> Result<Self> {
        let link = machine.index_of(NIC)?;
        let capture = machine.run(|| Capture::start(policy, None))?.during("capture")?;
        Ok(Watch { capture, link, told: [0, 0] })
    }

    /// What left by the NIC, and is judged otherwise than the design has it. A frame that the filter
    /// did not show has not leaked.
    pub fn differences(
        &mut self,
        policy: &Policy,
        steps: &[Step],
        carried: &[bool],
    ) -> Result<Vec<String>> {
        let shown = self.judged(policy)?;
        let mut differences = Vec::new();
        for ((step, number), _) in steps.iter().zip(1..).zip(carried).filter(|it| *it.1) {
            if !matches!(step.way, Way::Sent(NIC) | Way::Frame(NIC)) {
                continue;
            }
            let judgement = shown.get(&kernel::identity_of(&step.packet, number));
            let leaked = judgement == Some(&Judgement::Leaked);
            self.told[usize::from(leaked)] += 1;
            if leaked == may_be_seen(policy, &step.packet) {
                differences.push(format!("leak test {judgement:?}\n{step:?}\n{policy:?}"));
            }
        }
        Ok(differences)
    }

    fn judged(&mut self, policy: &Policy) -> Result<BTreeMap<Identity, Judgement>> {
        let mut judged = BTreeMap::new();
        while let Some(seen) = self.capture.receive().during("capture")? {
            let frame = Frame::read(seen.hatype, seen.protocol, seen.bytes);
            let (Some(frame), true) = (frame, seen.link == self.link) else { continue };
            if let Some(identity) = kernel::identity(seen.bytes) {
                judged.insert(identity, judge(policy, &frame));
            }
        }
        Ok(judged)
    }
}

/// What the egress guard would let out under our mark, which no wire shows.
fn may_be_seen(policy: &Policy, packet: &Packet) -> bool {
    let guarded = Policy { egress_guard: true, ..policy.clone() };
    let marked = Packet { mark: policy.mark, ..packet.clone() };
    oracle::may_pass(&guarded, &marked, Way::Frame(NIC))
}
