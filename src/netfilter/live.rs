//! Reads our tables back from the kernel, with a decoder of our own.
//!
//! What it does not know it keeps as [`Expression::Foreign`], which equals nothing of ours: an
//! unknown thing in the table is never taken for intact.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::batch::push;
use super::message::{Request, SET_CONCAT, SET_INTERVAL, Writer, kind};
use crate::netlink::{Attributes, Message, Socket};
use crate::ruleset::expression::{self, Expression};
use crate::ruleset::{
    Base, Chain, ChainKind, ChainPolicy, Devices, Element, Family, Hook, Set, TABLE, Table, Value,
    ValueKind,
};

const NLM_F_DUMP: u16 = 0x300;
const NLM_F_ACK: u16 = 4;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// NFT_TABLE_F_DORMANT.
pub const DORMANT: u32 = 1;
/// NFT_SET_ANONYMOUS.
const ANONYMOUS: u32 = 1;
/// NFT_TABLE_F_OWNER: only the socket that set it may change the table.
pub const OWNER: u32 = 2;
/// NFT_TABLE_F_PERSIST (kernel 6.9, include/uapi/linux/netfilter/nf_tables.h): the table outlives
/// its owner. A literal, since older build hosts' headers lack it.
pub const PERSIST: u32 = 4;

/// One of our tables as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveTable {
    /// NFT_TABLE_F_*.
    pub flags: u32,
    /// Port of the socket that owns it.
    pub owner: Option<u32>,
    /// By name.
    pub chains: BTreeMap<String, LiveChain>,
    /// By name.
    pub sets: BTreeMap<String, LiveSet>,
    /// Named counters, quotas and the like, by type (NFT_OBJECT_*) and name: we have none.
    pub objects: BTreeSet<(u32, String)>,
    /// Flowtables by name: we have none, since what they carry passes by our chains (threat 16).
    pub flowtables: BTreeSet<String>,
}

/// A chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveChain {
    /// Where it hooks in; `None`: only jumped to.
    pub base: Option<LiveBase>,
    /// In order of evaluation.
    pub rules: Vec<LiveRule>,
}

/// See [`Base`]; numbers as the kernel says them, since a foreign chain may hold any.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in Base")]
pub struct LiveBase {
    pub kind: String,
    pub hook: u32,
    pub priority: i32,
    pub policy: u32,
    pub devices: Vec<String>,
    pub every_device: bool,
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRule {
    /// What it does.
    pub expressions: Vec<Expression>,
    /// Its comment.
    pub comment: String,
    /// What its counter has seen.
    pub counted: Option<Counted>,
}

/// A counter's reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A set as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSet {
    /// nft's number for its key.
    pub key_type: u32,
    /// Key length in bytes.
    pub key_length: u32,
    /// NFT_SET_*.
    pub flags: u32,
    /// Sorted.
    pub elements: Vec<Element>,
    /// It holds an element that none of ours is: the one for everything else (`*`) has no key.
    pub foreign: bool,
}

impl LiveTable {
    /// Whether it is what was compiled, rule for rule and element for element, and awake.
    pub fn equals(&self, table: &Table) -> bool {
        self.flags & DORMANT == 0
            && self.objects.is_empty()
            && self.flowtables.is_empty()
            && self.chains.len() == table.chains.len()
            && self.sets.len() == table.sets.len()
            && table.chains.iter().all(|chain| self.has_chain(chain))
            && table.sets.iter().all(|set| {
                self.sets
                    .get(&set.name)
                    .is_some_and(|live| live.is_defined_as(set) && live.holds(set))
            })
    }

    /// Whether the chain is there exactly so.
    pub fn has_chain(&self, chain: &Chain) -> bool {
        self.chains.get(&chain.name).is_some_and(|live| live.hooks_as(chain) && live.holds(chain))
    }
}

impl LiveChain {
    /// Whether it hooks in where the compiled one does.
    pub fn hooks_as(&self, chain: &Chain) -> bool {
        self.base == chain.base.as_ref().map(LiveBase::from)
    }

    fn holds(&self, chain: &Chain) -> bool {
        self.rules.len() == chain.rules.len()
            && self.rules.iter().zip(&chain.rules).all(|(live, rule)| {
                live.comment == rule.comment && live.expressions == expression::lower(rule)
            })
    }
}

impl From<&Base> for LiveBase {
    fn from(base: &Base) -> Self {
        LiveBase {
            kind: super::message::kind_name(base.kind).into(),
            hook: base.hook.number(),
            priority: base.priority,
            policy: match base.policy {
                ChainPolicy::Accept => 1,
                ChainPolicy::Drop => 0,
            },
            devices: match &base.devices {
                Devices::Named(names) => names.clone(),
                Devices::None | Devices::Every => Vec::new(),
            },
            every_device: base.devices == Devices::Every,
        }
    }
}

impl LiveBase {
    /// In the compiled table's words; `None` where no chain of ours is so.
    pub fn raise(&self, family: Family) -> Option<Base> {
        let hooks = match family {
            Family::Netdev => &[Hook::Egress][..],
            Family::Inet => {
                &[Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            }
        };
        Some(Base {
            kind: [ChainKind::Filter, ChainKind::Nat]
                .into_iter()
                .find(|&kind| super::message::kind_name(kind) == self.kind)?,
            hook: *hooks.iter().find(|hook| hook.number() == self.hook)?,
            priority: self.priority,
            policy: if self.policy == 0 { ChainPolicy::Drop } else { ChainPolicy::Accept },
            devices: match (self.every_device, self.devices.is_empty()) {
                (true, _) => Devices::Every,
                (false, true) => Devices::None,
                (false, false) => Devices::Named(self.devices.clone()),
            },
        })
    }
}

impl LiveSet {
    /// Whether it belongs to one rule, with which it comes and goes: none of ours is so.
    pub fn is_unnamed(&self) -> bool {
        self.flags & ANONYMOUS != 0
    }

    /// Whether key and flags are the compiled ones.
    pub fn is_defined_as(&self, set: &Set) -> bool {
        self.key_type == super::message::set_type(set)
            && self.key_length == super::message::key_length(set)
            && self.flags == super::message::set_flags(set)
    }

    /// Whether it holds the compiled elements and nothing else.
    pub fn holds(&self, set: &Set) -> bool {
        !self.foreign && self.elements == set.elements
    }

    /// In the compiled table's words; `None` where no set of ours is so.
    pub fn raise(&self, name: &str) -> Option<Set> {
        if self.foreign {
            return None;
        }
        let mut key = Vec::new();
        let mut rest = self.key_type;
        while rest != 0 {
            key.insert(0, ValueKind::from_set_type(rest & 0x3f)?);
            rest >>= 6;
        }
        Some(Set {
            name: name.into(),
            key,
            interval: self.flags & SET_INTERVAL != 0,
            elements: self.elements.clone(),
        })
    }
}

/// The ruleset's generation: it grows with every transaction of any program.
///
/// # Errors
/// The kernel's refusal; EINVAL or EOPNOTSUPP: no nf_tables.
pub fn generation(socket: &Socket) -> io::Result<u32> {
    ask(socket, kind::GETGEN, Family::Inet, 0, &[])?;
    for message in socket.receive()? {
        if let Some(failure) = message.ack().and_then(|ack| ack.failure) {
            return Err(io::Error::from_raw_os_error(failure.errno));
        }
        if let Some(id) = attributes(&message).get(1).and_then(number) {
            return Ok(id);
        }
    }
    Err(io::Error::other("the kernel did not say the ruleset's generation"))
}

/// Reads one of our tables; `None`: there is none.
///
/// # Errors
/// The kernel's refusal; EINTR: the ruleset changed meanwhile, read again.
pub fn read(socket: &Socket, family: Family) -> io::Result<Option<LiveTable>> {
    let Some(mut table) = read_table(socket, family)? else { return Ok(None) };
    for message in dump(socket, kind::GETCHAIN, family, None)? {
        read_chain(&mut table, &message);
    }
    for message in dump(socket, kind::GETRULE, family, None)? {
        read_rule(&mut table, &message);
    }
    for message in dump(socket, kind::GETSET, family, None)? {
        read_set(&mut table, &message);
    }
    for message in dump(socket, kind::GETOBJ, family, None)? {
        let found = attributes(&message);
        let kind = found.get(3).and_then(number).unwrap_or_default();
        table.objects.extend(found.get(2).map(|name| (kind, text(name))));
    }
    for message in dump(socket, kind::GETFLOWTABLE, family, None)? {
        table.flowtables.extend(attributes(&message).get(2).map(text));
    }
    for (name, set) in &mut table.sets {
        let mut elements = Vec::new();
        for message in dump(socket, kind::GETSETELEM, family, Some(name))? {
            set.foreign |= read_elements(&mut elements, &message);
        }
        set.elements = join_ranges(elements, set.flags);
    }
    Ok(Some(table))
}

/// Flags and owner alone.
pub(super) fn read_table(socket: &Socket, family: Family) -> io::Result<Option<LiveTable>> {
    let mut body = Writer::default();
    body.text(1, TABLE);
    ask(socket, kind::GETTABLE, family, 0, &body.finish())?;
    let answers = socket.receive()?;
    let answer = answers.first().ok_or_else(|| io::Error::other("no answer from the kernel"))?;
    if let Some(failure) = answer.ack().and_then(|ack| ack.failure) {
        return match failure.errno == nix::errno::Errno::ENOENT as i32 {
            true => Ok(None),
            false => Err(io::Error::from_raw_os_error(failure.errno)),
        };
    }
    let found = attributes(answer);
    Ok(Some(LiveTable {
        flags: found.get(2).and_then(number).unwrap_or_default(),
        owner: found.get(7).and_then(number),
        ..LiveTable::default()
    }))
}

/// A table of another program's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForeignTable {
    /// NFPROTO_*.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// Its chains with their rules, and its flowtables; sets and objects are not read.
    pub table: LiveTable,
}

/// Reads the tables of every family that are not ours.
///
/// # Errors
/// The kernel's refusal; EINTR: the ruleset changed meanwhile, read again.
pub fn read_foreign(socket: &Socket) -> io::Result<Vec<ForeignTable>> {
    let ours = |family: u8, name: &str| {
        name == TABLE && [Family::Inet, Family::Netdev].iter().any(|it| it.number() == family)
    };
    let mut tables: BTreeMap<(u8, String), LiveTable> = BTreeMap::new();
    for message in dump_all(socket, kind::GETTABLE)? {
        let Some(key) = table_of(&message) else { continue };
        let flags = attributes(&message).get(2).and_then(number).unwrap_or_default();
        tables.insert(key, LiveTable { flags, ..LiveTable::default() });
    }
    tables.retain(|(family, name), _| !ours(*family, name));
    type Reader = fn(&mut LiveTable, &Message);
    let readers: [(u16, Reader); 3] = [
        (kind::GETCHAIN, read_chain),
        (kind::GETRULE, read_rule),
        (kind::GETFLOWTABLE, |table, message| {
            table.flowtables.extend(attributes(message).get(2).map(text));
        }),
    ];
    for (kind, read) in readers {
        for message in dump_all(socket, kind)? {
            if let Some(table) = table_of(&message).and_then(|key| tables.get_mut(&key)) {
                read(table, &message);
            }
        }
    }
    let foreign = |((family, name), table)| ForeignTable { family, name, table };
    Ok(tables.into_iter().map(foreign).collect())
}

/// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_FLOWTABLE_TABLE: all are 1.
fn table_of(message: &Message) -> Option<(u8, String)> {
    Some((*message.payload.first()?, attributes(message).get(1).map(text)?))
}

fn dump_all(socket: &Socket, kind: u16) -> io::Result<Vec<Message>> {
    /// NFPROTO_UNSPEC: of every family.
    const UNSPECIFIED: u8 = 0;
    let flags = NLM_F_DUMP | NLM_F_ACK;
    let request = Request { kind, flags, family: UNSPECIFIED, body: Vec::new() };
    let mut bytes = Vec::new();
    push(&mut bytes, NFNL_SUBSYS_NFTABLES << 8 | kind, &request, 0, 0);
    socket.dump_consistent(&bytes)
}

fn read_chain(table: &mut LiveTable, message: &Message) {
    let found = attributes(message);
    let Some(name) = found.get(3).map(text) else { return };
    let base = found.get(4).map(|hook| {
        let hook = Attributes(hook);
        let mut base = LiveBase {
            kind: found.get(7).map(text).unwrap_or_default(),
            hook: hook.get(1).and_then(number).unwrap_or(u32::MAX),
            priority: hook.get(2).and_then(number).unwrap_or_default() as i32,
            policy: found.get(5).and_then(number).unwrap_or(1),
            devices: Vec::new(),
            every_device: false,
        };
        let single = hook.get(3).map(text);
        for (kind, value) in hook.get(4).map(Attributes).into_iter().flatten() {
            match (kind, text(value).as_str()) {
                (2, "") => base.every_device = true,
                (2, start) => base.devices.push(format!("{start}*")),
                (_, name) => base.devices.push(name.to_owned()),
            }
        }
        if let (Some(name), true) = (single, base.devices.is_empty()) {
            base.devices.push(name);
        }
        base
    });
    table.chains.insert(name, LiveChain { base, rules: Vec::new() });
}

fn read_rule(table: &mut LiveTable, message: &Message) {
    let found = attributes(message);
    let Some(chain) = found.get(2).map(borrowed_text) else { return };
    let list = Attributes(found.get(4).unwrap_or_default());
    let mut rule = LiveRule {
        expressions: Vec::with_capacity(list.count()),
        comment: found.get(7).map(comment).unwrap_or_default(),
        counted: None,
    };
    for (_, it) in list {
        let it = Fields::of(it);
        let name = until_nul(it.get(1).unwrap_or_default());
        let data = it.get(2).unwrap_or_default();
        if name == b"counter" {
            rule.counted = Some(counted(data));
        }
        rule.expressions.push(
            decode(name, data)
                .unwrap_or_else(|| Expression::Foreign { name: text(name), data: data.to_vec() }),
        );
    }
    match table.chains.get_mut(&*chain) {
        Some(chain) => chain.rules.push(rule),
        None => table.chains.entry(chain.into_owned()).or_default().rules.push(rule),
    }
}

fn read_set(table: &mut LiveTable, message: &Message) {
    let found = attributes(message);
    let Some(name) = found.get(2).map(text) else { return };
    let at = |kind: u16| found.get(kind).and_then(number).unwrap_or_default();
    let set = LiveSet {
        flags: at(3),
        key_type: at(4),
        key_length: at(5),
        elements: Vec::new(),
        foreign: false,
    };
    table.sets.insert(name, set);
}

/// (key, key end, ends a range)
type RawElement = (Vec<u8>, Option<Vec<u8>>, bool);

/// Whether there is any that none of ours is.
fn read_elements(list: &mut Vec<RawElement>, message: &Message) -> bool {
    let mut foreign = false;
    for (_, it) in attributes(message).get(3).map(Attributes).into_iter().flatten() {
        let it = Attributes(it);
        let key = |kind: u16| it.get(kind).and_then(data_value).map(<[u8]>::to_vec);
        let flags = it.get(3).and_then(number).unwrap_or_default();
        let ends = flags & super::message::ELEMENT_INTERVAL_END != 0;
        match key(1) {
            Some(first) => list.push((first, key(10), ends)),
            None => foreign = true,
        }
    }
    foreign
}

/// The kernel tells a range of a plain set as its start and, apart, where it ends.
fn join_ranges(mut list: Vec<RawElement>, flags: u32) -> Vec<Element> {
    let plain_ranges = flags & SET_INTERVAL != 0 && flags & SET_CONCAT == 0;
    list.sort();
    let mut elements: Vec<Element> = Vec::new();
    for (key, last, ends) in list {
        match (plain_ranges, ends) {
            (true, true) => {
                if let Some(open) = elements.last_mut() {
                    open.last = predecessor(&key);
                }
            }
            (true, false) => {
                let last = vec![0xff; key.len()];
                elements.push(Element { first: key, last });
            }
            (false, _) => elements.push(Element { last: last.unwrap_or(key.clone()), first: key }),
        }
    }
    elements
}

fn predecessor(value: &[u8]) -> Vec<u8> {
    let mut before = value.to_vec();
    for byte in before.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    before
}

/// An expression of ours; `None` where an attribute is missing or says more than ours do.
fn decode(name: &[u8], data: &[u8]) -> Option<Expression> {
    let found = Fields::of(data);
    let at = |kind: u16| found.get(kind).and_then(number);
    let value = |kind: u16| found.get(kind).and_then(data_value).map(Value::from_slice);
    let long = |kind: u16| Some(u64::from_be_bytes(found.get(kind)?.try_into().ok()?));
    Some(match name {
        b"meta" => match at(3) {
            None => Expression::Meta { key: at(2)?, register: at(1)? },
            Some(register) => Expression::MetaSet { key: at(2)?, register },
        },
        b"ct" if found.get(4).is_none() => Expression::Ct {
            key: at(2)?,
            direction: found.get(3).and_then(|value| value.first()).copied(),
            register: at(1)?,
        },
        b"fib" => Expression::Fib { register: at(1)?, result: at(2)?, flags: at(3)? },
        b"payload" if at(1).is_some() => {
            Expression::Payload { register: at(1)?, base: at(2)?, offset: at(3)?, length: at(4)? }
        }
        // NFTA_BITWISE_OP: zero is mask and xor.
        b"bitwise" if at(6).unwrap_or_default() == 0 && at(1)? == at(2)? => {
            Expression::Bitwise { register: at(1)?, mask: value(4)?, xor: value(5)? }
        }
        b"cmp" => Expression::Cmp { register: at(1)?, op: at(2)?, data: value(3)? },
        // NFTA_LOOKUP_DREG, _FLAGS: a map, an inversion.
        b"lookup" if at(3).is_none() && at(5).unwrap_or_default() == 0 => {
            Expression::Lookup { set: found.get(1).map(text)?, register: at(2)? }
        }
        b"immediate" => decode_immediate(at(1)?, found.get(2)?)?,
        b"counter" => Expression::Counter,
        b"reject" => Expression::Reject {
            kind: at(1)?,
            code: found.get(2).and_then(|value| value.first()).copied().unwrap_or_default(),
        },
        b"masq" if data.is_empty() => Expression::Masquerade,
        // NFTA_LIMIT_UNIT: a second; _TYPE: packets; _FLAGS: not inverted.
        b"limit" if long(2)? == 1 && at(4)? == 0 && at(5)? == 0 => {
            Expression::Limit { rate: long(1)?, burst: at(3)? }
        }
        // NFTA_LOG_GROUP alone: no prefix, level or other length.
        b"log" if Attributes(data).count() == 1 => {
            Expression::Log { group: u16::from_be_bytes(found.get(1)?.try_into().ok()?) }
        }
        _ => return None,
    })
}

fn decode_immediate(register: u32, data: &[u8]) -> Option<Expression> {
    let found = Attributes(data);
    if register != 0 {
        return Some(Expression::Immediate { register, data: Value::from_slice(found.get(1)?) });
    }
    let verdict = Attributes(found.get(2)?);
    Some(Expression::Verdict {
        code: number(verdict.get(1)?)? as i32,
        chain: verdict.get(2).map(text),
    })
}

fn counted(data: &[u8]) -> Counted {
    let found = Attributes(data);
    let at = |kind: u16| {
        let bytes: Option<[u8; 8]> = found.get(kind).and_then(|value| value.try_into().ok());
        bytes.map(u64::from_be_bytes).unwrap_or_default()
    };
    Counted { bytes: at(1), packets: at(2) }
}

/// NFTNL_UDATA_RULE_COMMENT: type 0, length, text, NUL.
fn comment(userdata: &[u8]) -> String {
    match userdata {
        [0, length, rest @ ..] => text(rest.get(..usize::from(*length)).unwrap_or(rest)),
        _ => String::new(),
    }
}

fn data_value(data: &[u8]) -> Option<&[u8]> {
    Attributes(data).get(1)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn text(value: &[u8]) -> String {
    borrowed_text(value).into_owned()
}

fn borrowed_text(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(until_nul(value))
}

fn until_nul(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// An object's attributes by their types, found in one pass; none of ours asks for a greater one.
struct Fields<'a>([Option<&'a [u8]>; 8]);

impl<'a> Fields<'a> {
    fn of(data: &'a [u8]) -> Self {
        let mut fields = [None; 8];
        for (kind, value) in Attributes(data) {
            if let Some(field @ None) = fields.get_mut(usize::from(kind)) {
                *field = Some(value);
            }
        }
        Fields(fields)
    }

    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0[usize::from(kind)]
    }
}

/// The attributes after `nfgenmsg`.
fn attributes(message: &Message) -> Attributes<'_> {
    Attributes(message.payload.get(4..).unwrap_or_default())
}

fn ask(socket: &Socket, kind: u16, family: Family, flags: u16, body: &[u8]) -> io::Result<()> {
    let request = Request { kind, flags, family: family.number(), body: body.to_vec() };
    let mut bytes = Vec::new();
    push(&mut bytes, NFNL_SUBSYS_NFTABLES << 8 | kind, &request, 0, 0);
    socket.send(&bytes)
}

fn dump(socket: &Socket, kind: u16, family: Family, set: Option<&str>) -> io::Result<Vec<Message>> {
    let mut body = Writer::default();
    body.text(1, TABLE);
    if let Some(set) = set {
        body.text(2, set);
    }
    let flags = NLM_F_DUMP | NLM_F_ACK;
    let request = Request { kind, flags, family: family.number(), body: body.finish() };
    let mut bytes = Vec::new();
    push(&mut bytes, NFNL_SUBSYS_NFTABLES << 8 | kind, &request, 0, 0);
    let mut answers = socket.dump(&bytes)?;
    // Kernels that do not filter chains by table send all of them.
    answers.retain(|answer| {
        answer.payload.first() == Some(&family.number())
            && attributes(answer).get(1).map(until_nul) == Some(TABLE.as_bytes())
    });
    Ok(answers)
}
