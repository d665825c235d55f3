//! The whole lock: both nftables tables and the routing guard, applied, removed and read back.

mod keeper;
mod live;
mod other;
mod status;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::netfilter::{self, Applied};
use crate::netlink::{Family as NetlinkFamily, Socket};
use crate::policy::Policy;
use crate::routing;
use crate::ruleset::{self, Family, Table};

pub use keeper::{Keeper, parked};
pub use live::{Live, read};
pub use status::{Exception, Layers, REMAINS, State, Status, Tunnel};

/// What [`lock`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything differed from what was asked.
    pub changed: bool,
    /// What is weaker than asked, and why.
    pub degraded: Vec<String>,
    /// A layer that should hold does not, as `degraded` says.
    pub broken: bool,
    /// Why such a layer may hold if it is tried again.
    pub failing: Option<String>,
    /// Every table is owned by the [`Keeper`] that did this: nobody else can change it.
    pub owned: bool,
}

impl Outcome {
    /// A layer does not hold; `again`: that may change without the kernel's or the configuration's
    /// changing.
    fn fail(&mut self, why: String, again: bool) {
        self.broken = true;
        if again {
            self.failing = Some(why.clone());
        }
        self.degraded.push(why);
    }
}

/// Why the lock could not be applied or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The nftables tables.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// The routing guard.
    #[error("routing guard: {0}")]
    Routing(#[from] routing::Error),
    /// There is no table, and none can be had; whether the routing guard holds alone is said.
    #[error("{netfilter}; {routing}")]
    RoutingOnly {
        /// Why there is no table.
        netfilter: netfilter::Error,
        /// What became of the routing guard.
        routing: String,
    },
}

/// Applies the whole lock. What is there already stays untouched; what differs is replaced in
/// place, so at no moment more may leave than before or after.
///
/// # Errors
/// The `inet` table could not be applied: the old one is untouched. The other layers' failures are
/// not errors but reasons why the lock is degraded.
pub fn lock(policy: &Policy) -> Result<Outcome, Error> {
    let _turn = wait_for_turn(PATIENCE);
    let route = Socket::open(NetlinkFamily::Route);
    let tables = Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from).and_then(
        |netfilter| {
            let mut put = |table: &Table| netfilter::apply(&netfilter, table);
            lock_tables(&netfilter, route.as_ref(), policy, &mut put)
        },
    );
    match tables {
        Err(error) if !leaves_nothing(&error) => Err(error.into()),
        tables => with_routing(tables, policy, |guard| match &route {
            Ok(route) => {
                // The answers to what the tables' part gave up half-way.
                route.discard_pending();
                routing::apply_with(route, guard)
            }
            Err(_) => routing::apply(guard),
        }),
    }
}

/// Without nf_tables, or where it refuses our table and none is there, the routing guard is all that
/// can be had.
fn leaves_nothing(error: &netfilter::Error) -> bool {
    match error {
        netfilter::Error::Missing(_) => true,
        netfilter::Error::Refused(_) => Socket::open(NetlinkFamily::Netfilter)
            .is_ok_and(|socket| netfilter::exists(&socket, Family::Inet).is_ok_and(|it| !it)),
        _ => false,
    }
}

/// Adds the routing guard to what became of the tables.
fn with_routing(
    tables: Result<Outcome, netfilter::Error>,
    policy: &Policy,
    apply: impl FnOnce(&routing::Guard) -> Result<routing::Report, routing::Error>,
) -> Result<Outcome, Error> {
    let routing = apply(&routing::Guard::from_policy(policy));
    match tables {
        Ok(mut outcome) => {
            match routing {
                Ok(report) => {
                    outcome.changed |= report.added + report.removed > 0;
                    outcome.degraded.extend(report.degraded);
                }
                Err(error) => outcome.fail(format!("routing guard: {error}"), true),
            }
            Ok(outcome)
        }
        Err(netfilter) if leaves_nothing(&netfilter) => {
            let routing = match routing {
                Ok(_) if !policy.routing_guard => {
                    "and an external tunnel has no routing guard: NOTHING holds".to_owned()
                }
                Ok(_) => "only the routing guard holds".to_owned(),
                Err(error) => format!("the routing guard failed too: {error}"),
            };
            Err(Error::RoutingOnly { netfilter, routing })
        }
        Err(error) => Err(error.into()),
    }
}

/// How long a command waits for another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lock is three transactions, and a table has one owner: of two commands at the same time the
/// later waits. Only for a while: a program that hangs must not keep an administrator from locking.
fn wait_for_turn(patience: Duration) -> Option<Flock<File>> {
    const PAUSE: Duration = Duration::from_millis(10);
    let begin = Instant::now();
    // O_NONBLOCK: a FIFO in its place must not hold up either.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open("/run/killswitch.lock")
        .ok()
        .filter(|file| file.metadata().is_ok_and(|it| it.is_file()))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err(_) if begin.elapsed() > patience => return None,
            Err((file, _)) => file,
        };
        std::thread::sleep(PAUSE);
    }
}

/// What the lock is worth where the kernel lacks nft_log, nft_limit or nfnetlink_log.
const UNLOGGED: &str = "what is blocked is not told: this kernel cannot log it to a group";

/// `put` makes one table what was compiled.
fn lock_tables(
    netfilter: &Socket,
    route: Result<&Socket, &io::Error>,
    policy: &Policy,
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
) -> Result<Outcome, netfilter::Error> {
    let mut logs = true;
    let mut put = |table: &Table| put_with_log(put, table, &mut logs);
    let mut outcome = lock_table_and_links(netfilter, route, policy, &mut put)?;
    if !logs {
        outcome.degraded.push(UNLOGGED.into());
    }
    Ok(outcome)
}

fn lock_table_and_links(
    netfilter: &Socket,
    route: Result<&Socket, &io::Error>,
    policy: &Policy,
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
) -> Result<Outcome, netfilter::Error> {
    let mut outcome = Outcome::default();
    // Internal bridges are safe only behind an egress guard. On a first lock it follows at once;
    // later, its absence shows that this kernel has none.
    let exists = |family| netfilter::exists(netfilter, family);
    let guarded = policy.egress_guard && (!exists(Family::Inet)? || exists(Family::Netdev)?);
    let wanted = if guarded { policy.clone() } else { without_guard(policy) };
    outcome.changed |= put(&ruleset::compile(&wanted))? == Applied::Changed;
    if !policy.egress_guard {
        outcome.changed |= netfilter::remove(netfilter, Family::Netdev)? == Applied::Changed;
        return Ok(outcome);
    }
    let holds = match lock_links(route, policy, put) {
        Ok(guard) if guard.open.is_empty() => {
            outcome.changed |= guard.changed;
            true
        }
        Ok(guard) => {
            outcome.changed |= guard.changed;
            let open = guard.open.join(", ");
            outcome.fail(format!("egress guard: a probe got through on {open}"), false);
            false
        }
        Err(error) => {
            let again = error.may_pass();
            outcome.fail(format!("egress guard: {error}"), again);
            false
        }
    };
    if holds != guarded {
        let wanted = if holds { policy.clone() } else { without_guard(policy) };
        outcome.changed |= put(&ruleset::compile(&wanted))? == Applied::Changed;
    }
    if !holds && !policy.internal.is_empty() {
        outcome.degraded.push("allow.internal is left out: it needs the egress guard".into());
    }
    Ok(outcome)
}

/// A kernel that cannot log must still get the lock; `logs`: whether it can, as far as is known.
fn put_with_log(
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
    table: &Table,
    logs: &mut bool,
) -> Result<Applied, netfilter::Error> {
    if *logs {
        match put(table) {
            Err(netfilter::Error::Refused(failures)) if failures.iter().all(is_log) => {
                *logs = false;
            }
            other => return other,
        }
    }
    put(&table.clone().without_log())
}

fn is_log((what, _): &(String, crate::netlink::Failure)) -> bool {
    what.starts_with(&format!("rule \"{}\"", ruleset::LOG_COMMENT))
}

fn lock_links(
    route: Result<&Socket, &io::Error>,
    policy: &Policy,
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
) -> Result<netfilter::Guard, netfilter::Error> {
    match route {
        Ok(route) => netfilter::apply_guard_by(put, route, policy),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string()).into()),
    }
}

fn without_guard(policy: &Policy) -> Policy {
    Policy { egress_guard: false, ..policy.clone() }
}

/// Opens everything: both tables and the routing guard go. Whether there was anything.
///
/// # Errors
/// If the `inet` table cannot be removed, nothing has changed.
pub fn unlock() -> Result<bool, Error> {
    let _turn = wait_for_turn(PATIENCE);
    let mut any = false;
    match Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from) {
        Ok(netfilter) => any |= remove_tables(&netfilter)?,
        // No nf_tables, no tables: but the routing guard may be there.
        Err(netfilter::Error::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    any |= routing::remove()? > 0;
    Ok(any)
}

fn remove_tables(netfilter: &Socket) -> Result<bool, netfilter::Error> {
    let mut any = false;
    for family in [Family::Inet, Family::Netdev] {
        any |= netfilter::remove(netfilter, family)? == Applied::Changed;
    }
    Ok(any)
}

/// Whether the caller may change the lock.
///
/// # Errors
/// [`Error`], if not.
pub fn permitted() -> Result<(), Error> {
    let netfilter = Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from)?;
    netfilter::live::generation(&netfilter).map_err(netfilter::Error::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Failure;
    use crate::policy::Tunnel;
    use nix::errno::Errno;

    fn table() -> Table {
        let tunnel = Tunnel {
            interface: "wg0".into(),
            kinds: ["wireguard"].into(),
            addresses: [std::net::Ipv4Addr::new(10, 64, 0, 2).into()].into(),
        };
        ruleset::compile(&Policy { tunnel: Some(tunnel), ..Policy::strictest() })
    }

    /// Every rule that logs, and one message more.
    fn refusal(table: &Table, more: &str) -> netfilter::Error {
        let failure = Failure { errno: Errno::ENOENT as i32, text: None, offset: None };
        let mut failures = Vec::new();
        for chain in &table.chains {
            for rule in chain.rules.iter().filter(|it| it.comment == ruleset::LOG_COMMENT) {
                let what = format!("rule \"{}\" of chain {}", rule.comment, chain.name);
                failures.push((what, failure.clone()));
            }
        }
        failures.extend((!more.is_empty()).then(|| (more.to_owned(), failure)));
        netfilter::Error::Refused(failures)
    }

    /// No kernel here is without nft_log, so its answers are made up.
    #[test]
    fn a_kernel_that_cannot_log_gets_the_lock_without() {
        let wanted = table();
        let mut asked = Vec::new();
        let mut put = |table: &Table| {
            asked.push(table.clone());
            match *table == wanted {
                true => Err(refusal(table, "")),
                false => Ok(Applied::Changed),
            }
        };
        let mut logs = true;
        for _ in 0..2 {
            assert_eq!(put_with_log(&mut put, &wanted, &mut logs).unwrap(), Applied::Changed);
            assert!(!logs);
        }
        // Asked with the log once.
        let without = wanted.clone().without_log();
        assert_ne!(without, wanted);
        assert_eq!(asked, [wanted, without.clone(), without]);
    }

    #[test]
    fn any_other_refusal_stays_one() {
        let wanted = table();
        let mut put = |table: &Table| Err(refusal(table, "chain output"));
        let mut logs = true;
        assert!(put_with_log(&mut put, &wanted, &mut logs).is_err());
        assert!(logs);
    }
}
