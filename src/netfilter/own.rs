//! Ownership: while the socket that owns a table is open, nobody else can change or flush it.

use super::Error;
use super::batch::{Batch, Refusal};
use super::live::{self, OWNER, PERSIST};
use super::replace::{TRIES, fill_into, is_unsupported, refuse_if_owned};
use crate::netlink::Socket;
use crate::ruleset::{Family, Table};

/// What [`own`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// This socket owned it already.
    Held,
    /// This socket owns it from now on; until then anybody could change it, so compare it again.
    Taken,
    /// This kernel cannot let a table outlive its owner (before 6.9), and a table that dies with its
    /// owner is worse than one that anybody may change: nobody owns it.
    Unsupported,
}

/// Takes the ownership of a table that is there and holds what was compiled.
///
/// One that persists is taken as it is. One that does not (loaded by nft from the static lock) never
/// can: the kernel refuses. It is replaced in one transaction; since every base chain ends in an
/// explicit drop, nothing gets through meanwhile (threat 26).
///
/// # Errors
/// [`Error::Owned`]: another process does; the table stays as it is after every error.
pub fn own(socket: &Socket, table: &Table) -> Result<Ownership, Error> {
    for _ in 0..TRIES {
        let generation = live::generation(socket)?;
        let Some(live) = live::read_table(socket, table.family)? else {
            return Err(Error::NotAsWritten(table.family));
        };
        refuse_if_owned(socket, table.family, Some(&live))?;
        if live.owner.is_some() {
            return Ok(Ownership::Held);
        }
        let batch = match live.flags & PERSIST {
            0 => replacement(table),
            // A transaction of its own: in one that changes a table's flags the kernel refuses new
            // base chains.
            _ => claim(table.family),
        };
        match batch.commit(socket, Some(generation)) {
            Ok(()) => return Ok(Ownership::Taken),
            Err(Refusal::Raced) => {}
            Err(Refusal::Failed(failures)) if failures.iter().any(is_unsupported) => {
                return Ok(Ownership::Unsupported);
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(Error::Busy(TRIES))
}

/// Port of the socket that owns one of our tables; `None`: nobody does, or there is no table.
///
/// # Errors
/// The kernel's refusal.
pub fn owner(socket: &Socket, family: Family) -> Result<Option<u32>, Error> {
    Ok(live::read_table(socket, family)?.and_then(|table| table.owner))
}

/// Whether one of our tables is there, whatever it holds.
///
/// # Errors
/// The kernel's refusal.
pub fn exists(socket: &Socket, family: Family) -> Result<bool, Error> {
    Ok(live::read_table(socket, family)?.is_some())
}

fn claim(family: Family) -> Batch {
    let mut batch = Batch::new(family);
    batch.add_table(OWNER | PERSIST);
    batch
}

fn replacement(table: &Table) -> Batch {
    let mut batch = Batch::new(table.family);
    batch.delete_table();
    fill_into(&mut batch, table, None, Some(OWNER | PERSIST));
    batch
}
