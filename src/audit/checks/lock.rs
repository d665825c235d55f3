//! The lock itself, and who keeps it.

use super::known;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};
use crate::lock::State;
use crate::netfilter::guarded;

const EGRESS_CHAINS: (u32, u32) = (5, 16);
const OWNED_TABLES: (u32, u32) = (6, 9);
const WILDCARDS: (u32, u32) = (6, 18);

pub(super) fn configuration(_: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for (complaint, help) in &wanted.complaints {
        found.find(&CONFIGURATION_REFUSED, complaint, help);
    }
    Ok(found)
}

/// What should hold is not known without a configuration.
pub(super) fn judgeable(facts: &Facts, wanted: &Wanted) -> Result<(), Unknown> {
    match () {
        () if facts.status.state == State::Open => {
            Err(Unknown::NotApplicable("nothing is locked".into()))
        }
        () if !wanted.complaints.is_empty() => {
            Err(Unknown::Unreadable("the configuration cannot be used".into()))
        }
        () => Ok(()),
    }
}

pub(super) fn lock(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    let status = &facts.status;
    if status.state == State::Open {
        found.find(&LOCK_OPEN, "this machine", "killswitch lock");
        return Ok(found);
    }
    judgeable(facts, wanted)?;
    if !status.locked || !status.layers.table {
        found.find(&LOCK_DAMAGED, "table inet killswitch", "killswitch plan; killswitch lock");
    }
    for reason in status.degraded.iter().filter(|reason| !has_its_check(reason)) {
        // Without IPv6 the tunnel has none: nothing is weaker.
        match reason.contains("this kernel") || reason.starts_with("tunnel: ") {
            true => found.note(reason),
            false => found.find(&LOCK_DEGRADED, reason, "killswitch lock; killswitch status"),
        }
    }
    for exception in &status.exceptions {
        let (kind, what, left) = (&exception.kind, &exception.what, exception.left_s);
        found.note(format!("open for {left} seconds more: {kind} {what}"));
    }
    Ok(found)
}

/// How the status begins to tell that a guard differs from the configured one.
const DIFFERING_GUARD: &str = "table netdev killswitch";

/// Other checks tell of it, by what the layers are.
fn has_its_check(reason: &str) -> bool {
    const TOLD: [&str; 9] = [
        "table inet killswitch",
        DIFFERING_GUARD,
        "the strictest lock is loaded",
        "allow.internal is left out: it needs the egress guard",
        "egress guard: off",
        "egress guard: there is none",
        "routing guard: missing",
        "routing guard: too much",
        "routing guard: cannot set",
    ];
    TOLD.iter().any(|start| reason.starts_with(start)) || reason.ends_with(" has none")
}

pub(super) fn egress(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    judgeable(facts, wanted)?;
    let mut found = Found::default();
    if !wanted.policy.egress_guard {
        found.find(&EGRESS_OFF, "lock.egress_guard", "egress_guard = true in [lock]");
        return Ok(found);
    }
    if facts.kernel.as_ref().is_ok_and(|kernel| *kernel < EGRESS_CHAINS) {
        found.find(&KERNEL_WITHOUT_EGRESS, "the kernel", "run Linux 5.16 or newer");
        return Ok(found);
    }
    for link in guarded(&wanted.policy, known(&facts.links)?) {
        if !facts.status.layers.egress.contains(&link.name) {
            found.find(&EGRESS_MISSING, format!("link {}", link.name), "killswitch lock");
        }
    }
    if facts.status.degraded.iter().any(|reason| reason.starts_with(DIFFERING_GUARD)) {
        found.find(&EGRESS_DAMAGED, DIFFERING_GUARD, "killswitch plan; killswitch lock");
    }
    Ok(found)
}

pub(super) fn routing(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    judgeable(facts, wanted)?;
    let mut found = Found::default();
    if !wanted.policy.routing_guard {
        return Err(Unknown::NotApplicable("an external tunnel has no routing guard".into()));
    }
    if !facts.status.layers.routes {
        let reasons = facts.status.degraded.iter();
        let told: Vec<&str> =
            reasons.filter_map(|reason| reason.strip_prefix("routing guard: ")).collect();
        found.find(&ROUTING_DAMAGED, told.join("; "), "killswitch lock");
    }
    Ok(found)
}

pub(super) fn daemon(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    let status = &facts.status;
    if !status.daemon {
        found.find(&DAEMON_NOT_RUNNING, "killswitch.service", "systemctl enable --now killswitch");
    } else if status.locked && !status.layers.owned && *known(&facts.kernel)? >= OWNED_TABLES {
        found.find(&TABLE_NOT_OWNED, "table inet killswitch", "systemctl restart killswitch");
    }
    Ok(found)
}

/// What no configuration can change.
pub(super) fn kernel(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let kernel = *known(&facts.kernel)?;
    let mut found = Found::default();
    if kernel < OWNED_TABLES {
        found.note("before Linux 6.9 a table cannot outlive its owner: others can flush the lock, and the daemon mends it afterwards");
    }
    if kernel < WILDCARDS && wanted.policy.egress_guard {
        found.note(
            "before Linux 6.18 a new link has no egress guard until the daemon has given it one",
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use super::*;

    #[test]
    fn an_open_machine_has_one_finding() {
        let mut facts = facts();
        facts.status.state = State::Open;
        (facts.status.locked, facts.status.layers.table) = (false, false);
        facts.status.layers.egress.clear();
        assert_eq!(ids(&facts, &wanted()), ["lock-open"]);
    }

    #[test]
    fn each_layer_has_its_finding() {
        let mut it = facts();
        it.status.layers.table = false;
        assert_eq!(ids(&it, &wanted()), ["lock-damaged"]);
        let mut it = facts();
        it.status.layers.egress.clear();
        it.status.degraded = vec!["egress guard: eth0 has none".into()];
        assert_eq!(ids(&it, &wanted()), ["egress-guard-missing"]);
        let mut it = facts();
        it.status.degraded = vec!["table netdev killswitch is not what the ...".into()];
        assert_eq!(ids(&it, &wanted()), ["egress-guard-damaged"]);
        let mut it = facts();
        it.status.layers.routes = false;
        it.status.degraded = vec!["routing guard: missing: -4 rule 27590".into()];
        assert_eq!(ids(&it, &wanted()), ["routing-guard-damaged"]);
        let mut it = facts();
        it.status.degraded = vec!["egress guard: a probe got through on eth0".into()];
        assert_eq!(ids(&it, &wanted()), ["lock-degraded"]);
    }

    #[test]
    fn what_a_kernel_cannot_is_a_note() {
        let mut it = facts();
        it.kernel = Ok((6, 1));
        it.status.layers.owned = false;
        it.status.degraded = vec!["the tables have no owner: this kernel cannot".into()];
        assert_eq!(ids(&it, &wanted()), [""; 0]);
        assert_eq!(crate::audit::judge(&it, &wanted()).notes.len(), 3);
        it.kernel = Ok((5, 10));
        assert_eq!(ids(&it, &wanted()), ["kernel-without-egress"]);
    }

    #[test]
    fn a_daemon_that_is_not_there_or_owns_nothing() {
        let mut it = facts();
        it.status.layers.owned = false;
        assert_eq!(ids(&it, &wanted()), ["table-not-owned"]);
        it.status.daemon = false;
        assert_eq!(ids(&it, &wanted()), ["daemon-not-running"]);
    }

    #[test]
    fn a_broken_configuration_is_a_finding_and_leaves_the_layers_unjudged() {
        let mut wanted = wanted();
        wanted.complaints = vec![("/etc/killswitch.toml: no".into(), "chmod".into())];
        let report = crate::audit::judge(&facts(), &wanted);
        assert_eq!(report.findings[0].id, "configuration-refused");
        assert_eq!((report.findings.len(), report.unchecked.len()), (1, 5));
    }
}
