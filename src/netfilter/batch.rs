//! One transaction: messages spliced into one datagram, and every refusal told by what it was.

use std::io;

use super::message::{self, Request, kind};
use super::plain::Plain;
use crate::netlink::{Failure, Socket};
use crate::ruleset::expression::Expression;
use crate::ruleset::{Chain, Element, Family, Set};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// NFNL_BATCH_GENID: refuse with ERESTART if the ruleset is of another generation.
const NFNL_BATCH_GENID: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Of a rule of ours, on average, so that the datagram need not be moved while it grows.
const BYTES_PER_MESSAGE: usize = 400;

/// A transaction being written.
pub struct Batch {
    family: Family,
    plain: Plain,
    slots: Vec<Slot>,
}

struct Slot {
    what: String,
    /// `None`: the next of rustables' messages.
    own: Option<Request>,
}

/// The kernel refused a transaction; nothing of it took effect.
#[derive(Debug)]
pub enum Refusal {
    /// Another program changed the ruleset meanwhile.
    Raced,
    /// These messages failed, each with what it was.
    Failed(Vec<(String, Failure)>),
    /// The socket failed.
    Socket(io::Error),
}

impl Batch {
    /// An empty transaction on one of our tables.
    pub fn new(family: Family) -> Self {
        Batch { family, plain: Plain::new(), slots: Vec::new() }
    }

    /// Whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn plain(&mut self, what: String) {
        self.slots.push(Slot { what, own: None });
    }

    fn own(&mut self, what: String, request: Request) {
        self.slots.push(Slot { what, own: Some(request) });
    }

    /// Creates the table or updates its flags.
    pub fn add_table(&mut self, flags: u32) {
        self.plain.table(self.family, flags);
        self.plain(format!("table {}", self.family));
    }

    /// Deletes the table with all in it.
    pub fn delete_table(&mut self) {
        self.plain.delete_table(self.family);
        self.plain(format!("table {}", self.family));
    }

    /// Creates a chain, or updates its policy.
    pub fn add_chain(&mut self, chain: &Chain) {
        let what = format!("chain {}", chain.name);
        match self.family {
            Family::Inet => {
                self.plain.inet_chain(chain);
                self.plain(what);
            }
            Family::Netdev => self.own(what, message::netdev_chain(chain)),
        }
    }

    /// Empties a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.plain.flush_chain(self.family, name);
        self.plain(format!("rules of chain {name}"));
    }

    /// Deletes an empty chain.
    pub fn delete_chain(&mut self, name: &str) {
        let request = message::select(kind::DELCHAIN, self.family, Some(name));
        self.own(format!("chain {name}"), request);
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, chain: &str, list: &[Expression], comment: &str) {
        let what = ["rule \"", comment, "\" of chain ", chain].concat();
        self.own(what, message::rule(self.family, chain, list, comment));
    }

    /// Creates a set.
    pub fn add_set(&mut self, set: &Set) {
        let id = self.slots.len() as u32 + 1;
        self.own(format!("set {}", set.name), message::set(self.family, set, id));
    }

    /// Empties a set.
    pub fn flush_set(&mut self, name: &str) {
        let request = message::select(kind::DELSETELEM, self.family, Some(name));
        self.own(format!("elements of set {name}"), request);
    }

    /// Deletes a set that no rule uses.
    pub fn delete_set(&mut self, name: &str) {
        let request = message::select(kind::DELSET, self.family, Some(name));
        self.own(format!("set {name}"), request);
    }

    /// Deletes a named object that no rule uses; `of`: NFT_OBJECT_*.
    pub fn delete_object(&mut self, of: u32, name: &str) {
        self.own(format!("object {name}"), message::delete_object(self.family, of, name));
    }

    /// Deletes a flowtable that no rule uses.
    pub fn delete_flowtable(&mut self, name: &str) {
        let request = message::select(kind::DELFLOWTABLE, self.family, Some(name));
        self.own(format!("flowtable {name}"), request);
    }

    /// Adds elements.
    pub fn add_elements(&mut self, set: &Set, list: &[Element]) {
        self.elements(kind::NEWSETELEM, set, list);
    }

    /// Deletes elements.
    pub fn delete_elements(&mut self, set: &Set, list: &[Element]) {
        self.elements(kind::DELSETELEM, set, list);
    }

    fn elements(&mut self, kind: u16, set: &Set, list: &[Element]) {
        for request in message::elements(kind, self.family, set, list) {
            self.own(format!("elements of set {}", set.name), request);
        }
    }

    /// Sends it and reads the kernel's answers; `generation`: what it must still be.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing has changed then.
    pub fn commit(self, socket: &Socket, generation: Option<u32>) -> Result<(), Refusal> {
        let (bytes, whats) = self.finish(generation);
        transact(socket, &bytes, &whats)
    }

    /// The datagram, and what each sequence number stands for.
    pub fn finish(self, generation: Option<u32>) -> (Vec<u8>, Vec<String>) {
        let mut plain = self.plain.finish().into_iter();
        let mut bytes = Vec::with_capacity(BYTES_PER_MESSAGE * (self.slots.len() + 2));
        let mut whats = Vec::with_capacity(self.slots.len() + 2);
        whats.push("begin of the transaction".to_owned());
        let mut begin = message::Writer::default();
        if let Some(generation) = generation {
            begin.number(NFNL_BATCH_GENID, generation);
        }
        let limit = Request { kind: 0, flags: 0, family: 0, body: begin.finish() };
        push(&mut bytes, NFNL_MSG_BATCH_BEGIN, &limit, 0, NFNL_SUBSYS_NFTABLES);
        let last = self.slots.len();
        for (slot, sequence) in self.slots.into_iter().zip(1..) {
            let mut request = slot
                .own
                .or_else(|| plain.next())
                .expect("every slot without a message of its own has one of rustables'");
            if sequence as usize == last {
                request.flags |= NLM_F_ACK;
            }
            let number = NFNL_SUBSYS_NFTABLES << 8 | request.kind;
            push(&mut bytes, number, &request, sequence, 0);
            whats.push(slot.what);
        }
        let end = Request { kind: 0, flags: 0, family: 0, body: Vec::new() };
        push(&mut bytes, NFNL_MSG_BATCH_END, &end, last as u32 + 1, NFNL_SUBSYS_NFTABLES);
        whats.push("end of the transaction".to_owned());
        (bytes, whats)
    }
}

/// `nlmsghdr`, `nfgenmsg` and the attributes.
pub(crate) fn push(
    bytes: &mut Vec<u8>,
    kind: u16,
    request: &Request,
    sequence: u32,
    subsystem: u16,
) {
    let length = 20 + request.body.len() as u32;
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(request.flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[request.family, 0]);
    bytes.extend_from_slice(&subsystem.to_be_bytes());
    bytes.extend_from_slice(&request.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Sends a finished transaction. nfnetlink answers within `send`, so all answers wait already.
fn transact(socket: &Socket, bytes: &[u8], whats: &[String]) -> Result<(), Refusal> {
    /// The kernel's default for both buffers.
    const DEFAULT_BUFFER: usize = 200 * 1024;
    if bytes.len() * 2 > DEFAULT_BUFFER {
        socket.reserve(bytes.len() * 2 + DEFAULT_BUFFER).map_err(Refusal::Socket)?;
    }
    socket.send(bytes).map_err(Refusal::Socket)?;
    let mut failures = Vec::new();
    let mut acknowledged = false;
    while let Some(messages) = socket.receive_pending().map_err(Refusal::Socket)? {
        for ack in messages.iter().filter_map(crate::netlink::Message::ack) {
            match ack.failure {
                None => acknowledged = true,
                Some(failure) if failure.errno == nix::errno::Errno::ERESTART as i32 => {
                    return drain(socket).and(Err(Refusal::Raced));
                }
                Some(failure) => {
                    let what = whats.get(ack.sequence as usize).cloned().unwrap_or_default();
                    failures.push((what, failure));
                }
            }
        }
    }
    match (failures.is_empty(), acknowledged) {
        (true, true) => Ok(()),
        (true, false) => Err(Refusal::Socket(io::Error::other("no answer from the kernel"))),
        (false, _) => Err(Refusal::Failed(failures)),
    }
}

fn drain(socket: &Socket) -> Result<(), Refusal> {
    while socket.receive_pending().map_err(Refusal::Socket)?.is_some() {}
    Ok(())
}
