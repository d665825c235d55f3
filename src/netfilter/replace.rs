//! Replaces a table in place: only what differs is touched, and never is it gone.

use super::Error;
use super::batch::{Batch, Refusal};
use super::live::{self, DORMANT, LiveTable, OWNER, PERSIST};
use crate::netlink::Socket;
use crate::ruleset::{Element, Family, Set, Table, expression};

/// How often a transaction that lost a race is tried anew.
const TRIES: u32 = 50;

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The kernel held it already.
    Unchanged,
    /// It was created or replaced.
    Changed,
}

/// Makes the kernel's table what was compiled, in one transaction, and reads it back.
///
/// # Errors
/// [`Error`]; the table is then as it was before.
pub fn apply(socket: &Socket, table: &Table) -> Result<Applied, Error> {
    let mut last = Error::Busy(TRIES);
    for _ in 0..TRIES {
        let generation = live::generation(socket)?;
        let live = match live::read(socket, table.family) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if live.as_ref().is_some_and(|live| live.equals(table)) {
            return Ok(Applied::Unchanged);
        }
        refuse_if_owned(socket, table.family, live.as_ref())?;
        if let Some(live) = live.as_ref().filter(|live| changes_flags(live)) {
            match take_over(table, live).commit(socket, Some(generation)) {
                Ok(()) | Err(Refusal::Raced) => continue,
                Err(refusal) => return Err(refusal.into()),
            }
        }
        match replace(socket, table, live.as_ref(), generation) {
            Ok(()) => {}
            Err(Refusal::Raced) => continue,
            Err(refusal) => return Err(refusal.into()),
        }
        match live::read(socket, table.family) {
            Ok(Some(live)) if live.equals(table) => return Ok(Applied::Changed),
            // Another program came between: repair it, as long as there is patience.
            Ok(_) => last = Error::NotAsWritten(table.family),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

/// Removes one of our tables; nothing happens if there is none.
///
/// # Errors
/// [`Error`]; the table is then still there.
pub fn remove(socket: &Socket, family: Family) -> Result<Applied, Error> {
    for _ in 0..TRIES {
        let generation = live::generation(socket)?;
        let live = match live::read(socket, family) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if live.is_none() {
            return Ok(Applied::Unchanged);
        }
        refuse_if_owned(socket, family, live.as_ref())?;
        let mut batch = Batch::new(family);
        batch.delete_table();
        match batch.commit(socket, Some(generation)) {
            Ok(()) => return Ok(Applied::Changed),
            Err(Refusal::Raced) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(Error::Busy(TRIES))
}

fn refuse_if_owned(socket: &Socket, family: Family, live: Option<&LiveTable>) -> Result<(), Error> {
    match live.and_then(|live| live.owner) {
        Some(port) if port != socket.port() => Err(Error::Owned { family, port }),
        _ => Ok(()),
    }
}

/// Whether the table sleeps, or has lost its owner.
fn changes_flags(live: &LiveTable) -> bool {
    live.flags & DORMANT != 0 || (live.flags & PERSIST != 0 && live.owner.is_none())
}

/// Wakes and adopts a table in a transaction of its own: one that changes a table's flags may add
/// no base chain (EINVAL, nf_tables_addchain).
fn take_over(table: &Table, live: &LiveTable) -> Batch {
    let mut batch = Batch::new(table.family);
    batch.add_table(if live.flags & PERSIST != 0 { OWNER | PERSIST } else { 0 });
    batch
}

/// Owner and persist if the kernel has both; neither otherwise: a table with an owner alone would
/// vanish with it (threats 22, 24).
fn replace(
    socket: &Socket,
    table: &Table,
    live: Option<&LiveTable>,
    generation: u32,
) -> Result<(), Refusal> {
    let could_persist = live.is_none_or(|live| live.flags & PERSIST != 0);
    if could_persist {
        match fill(table, live, OWNER | PERSIST).commit(socket, Some(generation)) {
            Err(Refusal::Failed(failures)) if failures.iter().all(is_unsupported) => {}
            other => return other,
        }
    }
    fill(table, live, 0).commit(socket, Some(generation))
}

fn is_unsupported((what, failure): &(String, crate::netlink::Failure)) -> bool {
    let unsupported = [nix::errno::Errno::EOPNOTSUPP as i32, nix::errno::Errno::EINVAL as i32];
    what.starts_with("table ") && unsupported.contains(&failure.errno)
}

/// The transaction that turns what is there into what was compiled.
pub(super) fn fill(table: &Table, live: Option<&LiveTable>, flags: u32) -> Batch {
    let nothing = LiveTable::default();
    let live = live.unwrap_or(&nothing);
    let mut batch = Batch::new(table.family);
    batch.add_table(flags);
    // A rule names its set, but is bound to the very set: a new one needs its rules anew.
    let redefined = table
        .sets
        .iter()
        .any(|set| live.sets.get(&set.name).is_some_and(|live| !live.is_defined_as(set)));
    let keeps =
        |name: &str| !redefined && table.chain(name).is_some_and(|chain| live.has_chain(chain));
    for name in live.chains.keys().filter(|name| !keeps(name)) {
        batch.flush_chain(name);
    }
    for (name, it) in &live.chains {
        if !table.chain(name).is_some_and(|chain| it.hooks_as(chain)) {
            batch.delete_chain(name);
        }
    }
    for (name, it) in &live.sets {
        if !table.set(name).is_some_and(|set| it.is_defined_as(set)) {
            batch.delete_set(name);
        }
    }
    for (of, name) in &live.objects {
        batch.delete_object(*of, name);
    }
    for name in &live.flowtables {
        batch.delete_flowtable(name);
    }
    for set in &table.sets {
        fill_set(&mut batch, live, set);
    }
    let changed = || table.chains.iter().filter(|chain| !keeps(&chain.name));
    changed().for_each(|chain| batch.add_chain(chain));
    for chain in changed() {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, &expression::lower(rule), &rule.comment);
        }
    }
    batch
}

fn fill_set(batch: &mut Batch, live: &LiveTable, set: &Set) {
    let Some(live) = live.sets.get(&set.name).filter(|live| live.is_defined_as(set)) else {
        batch.add_set(set);
        batch.add_elements(set, &set.elements);
        return;
    };
    if live.elements == set.elements {
        return;
    }
    if set.interval {
        // Ranges that overlap old ones: all out, all in, still one transaction.
        batch.flush_set(&set.name);
        batch.add_elements(set, &set.elements);
        return;
    }
    batch.delete_elements(set, &difference(&live.elements, &set.elements));
    batch.add_elements(set, &difference(&set.elements, &live.elements));
}

/// What is in the first sorted list and not in the second.
fn difference(all: &[Element], without: &[Element]) -> Vec<Element> {
    all.iter().filter(|it| without.binary_search(it).is_err()).cloned().collect()
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        use nix::errno::Errno;
        match refusal {
            Refusal::Raced => Error::Busy(TRIES),
            Refusal::Socket(error) => error.into(),
            Refusal::Failed(failures) => {
                let all = |errno: Errno| {
                    failures.iter().all(|(_, failure)| failure.errno == errno as i32)
                };
                match all(Errno::EPERM) {
                    true => Error::NotPermitted,
                    false => Error::Refused(failures),
                }
            }
        }
    }
}
