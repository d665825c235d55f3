//! What happens at the next boot.

use super::known;
use crate::audit::facts::State;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};

pub(super) fn units(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    const ENABLE: &str = "systemctl unmask killswitch killswitch-lock; systemctl enable killswitch";
    let units = known(&facts.units)?;
    let mut found = Found::default();
    let state = |state| if state == State::Masked { "masked" } else { "not enabled" };
    if units.lock != State::Enabled {
        let what = format!("killswitch-lock.service is {}", state(units.lock));
        found.find(&LOCK_UNIT_NOT_ENABLED, what, ENABLE);
    }
    if units.daemon != State::Enabled {
        let what = format!("killswitch.service is {}", state(units.daemon));
        found.find(&DAEMON_UNIT_NOT_ENABLED, what, ENABLE);
    }
    if !wanted.at_boot {
        found.find(&AT_BOOT_OFF, "lock.at_boot", "at_boot = true in [lock]");
    }
    if units.lock_failed {
        let cure = "journalctl -b -u killswitch-lock; systemctl restart killswitch-lock";
        found.find(&LOCK_UNIT_FAILED, "killswitch-lock.service", cure);
    }
    // The daemon owns the tables before nftables.service flushes them, where the kernel can.
    let owned = units.daemon == State::Enabled && *known(&facts.kernel)? >= (6, 9);
    if units.nftables_flush && !owned {
        let cure =
            "remove \"flush ruleset\" from /etc/nftables.conf; or: systemctl disable nftables";
        found.find(&NFTABLES_FLUSH, "/etc/nftables.conf", cure);
    }
    for early in &units.early {
        let unit = &early.unit;
        let cure = format!("After=killswitch-lock.service in [Unit]: systemctl edit {unit}");
        found.find(&EARLY_UNIT, format!("{unit} runs {}", early.program), cure);
    }
    Ok(found)
}

pub(super) fn initrd(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let initrd = known(&facts.initrd)?;
    let mut found = Found::default();
    for what in initrd.network.iter().filter(|_| !initrd.locked) {
        let cure = "write /etc/killswitch/initrd.toml (killswitch(8), BOOT AND REMOVAL); update-initramfs -u -k all, or dracut --force --regenerate-all";
        found.find(&INITRD_NETWORK, what, cure);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use crate::audit::facts::{Early, Initrd, State, Units, Unknown};

    fn with(change: impl FnOnce(&mut Units)) -> Vec<&'static str> {
        let mut facts = facts();
        change(facts.units.as_mut().unwrap());
        ids(&facts, &wanted())
    }

    #[test]
    fn each_gap_at_boot_is_found() {
        assert_eq!(with(|it| it.lock = State::Masked), ["lock-unit-not-enabled"]);
        assert_eq!(with(|it| it.daemon = State::Disabled), ["daemon-unit-not-enabled"]);
        assert_eq!(with(|it| it.lock_failed = true), ["lock-unit-failed"]);
        let early = Early { unit: "a.service".into(), program: "curl".into() };
        assert_eq!(with(|it| it.early = vec![early]), ["early-unit"]);
        let mut wanted = wanted();
        wanted.at_boot = false;
        assert_eq!(ids(&facts(), &wanted), ["at-boot-off"]);
    }

    #[test]
    fn a_flush_harms_where_nobody_owns_the_table_before() {
        assert_eq!(with(|it| it.nftables_flush = true), [""; 0]);
        let mut it = facts();
        it.kernel = Ok((6, 1));
        it.units.as_mut().unwrap().nftables_flush = true;
        assert_eq!(ids(&it, &wanted()), ["nftables-flush"]);
    }

    #[test]
    fn an_initrd_with_a_network_needs_a_lock() {
        let mut it = facts();
        it.initrd = Ok(Initrd { locked: false, network: vec!["ip=dhcp".into()] });
        assert_eq!(ids(&it, &wanted()), ["initrd-network"]);
        it.initrd.as_mut().unwrap().locked = true;
        assert_eq!(ids(&it, &wanted()), [""; 0]);
    }

    #[test]
    fn without_systemd_units_are_no_matter_and_an_unread_fact_is() {
        let mut it = facts();
        it.units = Err(Unknown::NotApplicable("no systemd".into()));
        let report = crate::audit::judge(&it, &wanted());
        assert_eq!((report.not_applicable.len(), report.exit_code()), (1, 0));
        it.initrd = Err(Unknown::Unreadable("no".into()));
        assert_eq!(crate::audit::judge(&it, &wanted()).exit_code(), 30);
    }
}
