//! Replaces a table in place: only what differs is touched, and never is it gone.

use super::Error;
use super::batch::{Batch, Refusal};
use super::live::{self, DORMANT, LiveTable, OWNER, PERSIST};
use crate::netlink::Socket;
use crate::ruleset::{Element, Family, Set, Table, expression};

/// How often a transaction that lost a race is tried anew.
pub(super) const TRIES: u32 = 50;

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The kernel held it already.
    Unchanged,
    /// It was created or replaced.
    Changed,
}

/// Makes the kernel's table what was compiled, in one transaction, and reads it back. If another
/// program comes between, its change is undone, as long as there is patience.
///
/// # Errors
/// [`Error`]; after a refusal the table is as it was before.
pub fn apply(socket: &Socket, table: &Table) -> Result<Applied, Error> {
    let mut done = Applied::Unchanged;
    for _ in 0..TRIES {
        match attempt(socket, table)? {
            Attempt::NothingToDo => return Ok(done),
            Attempt::Committed => done = Applied::Changed,
            Attempt::Again => {}
        }
    }
    Err(match done {
        Applied::Changed => Error::NotAsWritten(table.family),
        Applied::Unchanged => Error::Busy(TRIES),
    })
}

/// As [`apply`], without reading back.
///
/// # Errors
/// As [`apply`].
pub fn commit(socket: &Socket, table: &Table) -> Result<Applied, Error> {
    for _ in 0..TRIES {
        match attempt(socket, table)? {
            Attempt::NothingToDo => return Ok(Applied::Unchanged),
            Attempt::Committed => return Ok(Applied::Changed),
            Attempt::Again => {}
        }
    }
    Err(Error::Busy(TRIES))
}

enum Attempt {
    /// The kernel holds the table already.
    NothingToDo,
    /// The transaction was taken.
    Committed,
    /// Another program was faster, or a first step is done.
    Again,
}

fn attempt(socket: &Socket, table: &Table) -> Result<Attempt, Error> {
    let generation = live::generation(socket)?;
    let live = match live::read(socket, table.family) {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(Attempt::Again),
        other => other?,
    };
    if live.as_ref().is_some_and(|live| live.equals(table)) {
        return Ok(Attempt::NothingToDo);
    }
    refuse_if_owned(socket, table.family, live.as_ref())?;
    let asleep = live.as_ref().filter(|live| live.flags & DORMANT != 0);
    let done = match asleep {
        Some(live) => wake(socket, table.family, live, generation),
        None => replace(socket, table, live.as_ref(), generation),
    };
    match done {
        Ok(()) if asleep.is_some() => Ok(Attempt::Again),
        Ok(()) => Ok(Attempt::Committed),
        Err(Refusal::Raced) => Ok(Attempt::Again),
        Err(refusal) => Err(refusal.into()),
    }
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

pub(super) fn refuse_if_owned(
    socket: &Socket,
    family: Family,
    live: Option<&LiveTable>,
) -> Result<(), Error> {
    match live.and_then(|live| live.owner) {
        Some(port) if port != socket.port() => Err(Error::Owned { family, owner: owner(port) }),
        _ => Ok(()),
    }
}

/// A socket's port is the process id of its creator, unless that had another socket already.
fn owner(port: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("{} (process {port})", name.trim_end().escape_default()),
        Err(_) => format!("netlink port {port}"),
    }
}

/// A new table gets owner and persist if the kernel has both; neither otherwise: a table with an
/// owner alone would vanish with it (threats 22, 24). One that is there keeps its flags.
fn replace(
    socket: &Socket,
    table: &Table,
    live: Option<&LiveTable>,
    generation: u32,
) -> Result<(), Refusal> {
    if let Some(live) = live {
        return fill(table, Some(live), None).commit(socket, Some(generation));
    }
    match fill(table, None, Some(OWNER | PERSIST)).commit(socket, Some(generation)) {
        Err(Refusal::Failed(failures)) if failures.iter().any(is_unsupported) => {}
        other => return other,
    }
    fill(table, None, Some(0)).commit(socket, Some(generation))
}

/// Wakes a dormant table, and owns it if it persists: the kernel refuses to let it cease to. A
/// transaction of its own, since in one that changes a table's flags the kernel refuses new base
/// chains (nf_tables_addchain, `__NFT_TABLE_F_UPDATE`).
fn wake(socket: &Socket, family: Family, live: &LiveTable, generation: u32) -> Result<(), Refusal> {
    let flags = if live.flags & PERSIST != 0 { OWNER | PERSIST } else { 0 };
    let mut batch = Batch::new(family);
    batch.add_table(flags);
    batch.commit(socket, Some(generation))
}

/// Of one failure among others: 6.1 refuses the table, and so whatever is put into it.
pub(super) fn is_unsupported((what, failure): &(String, crate::netlink::Failure)) -> bool {
    let unsupported = [nix::errno::Errno::EOPNOTSUPP as i32, nix::errno::Errno::EINVAL as i32];
    what.starts_with("table ") && unsupported.contains(&failure.errno)
}

/// The transaction that turns what is there into what was compiled.
pub(super) fn fill(table: &Table, live: Option<&LiveTable>, flags: Option<u32>) -> Batch {
    let mut batch = Batch::new(table.family);
    fill_into(&mut batch, table, live, flags);
    batch
}

/// As [`fill`], after what is in the batch already.
pub(super) fn fill_into(
    batch: &mut Batch,
    table: &Table,
    live: Option<&LiveTable>,
    flags: Option<u32>,
) {
    let nothing = LiveTable::default();
    let live = live.unwrap_or(&nothing);
    if let Some(flags) = flags {
        batch.add_table(flags);
    }
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
    // Before the chains: a foreign map may lead to them. An unnamed set goes with its rule.
    for (name, it) in live.sets.iter().filter(|(_, it)| !it.is_unnamed()) {
        if !table.set(name).is_some_and(|set| it.is_defined_as(set)) {
            batch.delete_set(name);
        }
    }
    for (name, it) in &live.chains {
        if !table.chain(name).is_some_and(|chain| it.hooks_as(chain)) {
            batch.delete_chain(name);
        }
    }
    for (of, name) in &live.objects {
        batch.delete_object(*of, name);
    }
    for name in &live.flowtables {
        batch.delete_flowtable(name);
    }
    for set in &table.sets {
        fill_set(batch, live, set);
    }
    let changed = || table.chains.iter().filter(|chain| !keeps(&chain.name));
    changed().for_each(|chain| batch.add_chain(chain));
    for chain in changed() {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, &expression::lower(rule), &rule.comment);
        }
    }
}

fn fill_set(batch: &mut Batch, live: &LiveTable, set: &Set) {
    let Some(live) = live.sets.get(&set.name).filter(|live| live.is_defined_as(set)) else {
        batch.add_set(set);
        batch.add_elements(set, &set.elements);
        return;
    };
    if live.holds(set) {
        return;
    }
    if set.interval || live.foreign {
        // Ranges that overlap old ones, or what cannot be named: all out, all in, still one
        // transaction.
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
