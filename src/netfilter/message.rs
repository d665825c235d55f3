//! nfnetlink messages, written by hand: rules, and what rustables lacks (named sets with ranges and
//! concatenations, `netdev` chains).
//!
//! Attributes are length, type, payload, padding to four bytes; numbers are big-endian.

use crate::ruleset::expression::Expression;
use crate::ruleset::{Base, Chain, ChainKind, ChainPolicy, Devices, Element, Family, Set, TABLE};

/// One message of a batch, without its netlink header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// NFT_MSG_*.
    pub kind: u16,
    /// NLM_F_* besides REQUEST.
    pub flags: u16,
    /// NFPROTO_*.
    pub family: u8,
    /// The attributes.
    pub body: Vec<u8>,
}

/// NFT_MSG_* (include/uapi/linux/netfilter/nf_tables.h).
pub mod kind {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const GETCHAIN: u16 = 4;
    pub const DELCHAIN: u16 = 5;
    pub const NEWRULE: u16 = 6;
    pub const GETRULE: u16 = 7;
    pub const DELRULE: u16 = 8;
    pub const NEWSET: u16 = 9;
    pub const GETSET: u16 = 10;
    pub const DELSET: u16 = 11;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const DELSETELEM: u16 = 14;
    pub const GETGEN: u16 = 16;
    pub const GETOBJ: u16 = 19;
    pub const DELOBJ: u16 = 20;
    pub const GETFLOWTABLE: u16 = 23;
    pub const DELFLOWTABLE: u16 = 24;
}

/// NLM_F_CREATE.
pub const CREATE: u16 = 0x400;
/// NLM_F_APPEND.
pub const APPEND: u16 = 0x800;
/// NFT_SET_INTERVAL.
pub const SET_INTERVAL: u32 = 0x4;
/// NFT_SET_CONCAT.
pub const SET_CONCAT: u32 = 0x80;
/// NFT_SET_ELEM_INTERVAL_END.
pub const ELEMENT_INTERVAL_END: u32 = 1;
const NESTED: u16 = 0x8000;
const LIST_ELEM: u16 = 1;
/// Largest payload of one attribute that the kernel's 16-bit length can say, less some headers.
const ELEMENTS_PER_MESSAGE_BYTES: usize = 60_000;

/// Attributes being written.
pub struct Writer(Vec<u8>);

impl Default for Writer {
    /// With room for most messages: growing byte by byte is a tenth of the work.
    fn default() -> Self {
        Writer(Vec::with_capacity(512))
    }
}

impl Writer {
    /// What has been written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// A plain attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.head(kind, value.len());
        self.0.extend_from_slice(value);
        self.pad()
    }

    /// A string, closed by NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.head(kind, value.len() + 1);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.pad()
    }

    /// A 32-bit number.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.head(kind, 4);
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn head(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(4 + length).expect("attributes are cut to fit");
        let ([a, b], [c, d]) = (length.to_ne_bytes(), kind.to_ne_bytes());
        self.0.extend_from_slice(&[a, b, c, d]);
    }

    fn pad(&mut self) -> &mut Self {
        let length = self.0.len();
        self.0.resize(length.next_multiple_of(4), 0);
        self
    }

    /// NFTA_DATA_VALUE within an attribute.
    fn value(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |nest| {
            nest.bytes(1, value);
        })
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("attributes are cut to fit");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }
}

fn request(kind: u16, flags: u16, family: Family, body: Writer) -> Request {
    Request { kind, flags, family: family.number(), body: body.finish() }
}

/// Names the table, and a chain or set in it where the kind of message has one.
pub fn select(kind: u16, family: Family, name: Option<&str>) -> Request {
    let mut body = Writer::default();
    body.text(1, TABLE);
    if let Some(name) = name {
        let attribute = if kind == self::kind::DELCHAIN { 3 } else { 2 };
        body.text(attribute, name);
    }
    request(kind, 0, family, body)
}

/// NFT_MSG_DELOBJ; `of`: NFT_OBJECT_*.
pub fn delete_object(family: Family, of: u32, name: &str) -> Request {
    let mut body = Writer::default();
    body.text(1, TABLE).text(2, name).number(3, of);
    request(kind::DELOBJ, 0, family, body)
}

/// NFT_MSG_NEWCHAIN for a chain of the `netdev` family.
pub fn netdev_chain(chain: &Chain) -> Request {
    let mut body = Writer::default();
    body.text(1, TABLE).text(3, &chain.name);
    if let Some(base) = &chain.base {
        body.nest(4, |hook| write_hook(hook, base));
        body.number(5, policy(base.policy));
        body.text(7, kind_name(base.kind));
    }
    request(kind::NEWCHAIN, CREATE, Family::Netdev, body)
}

/// The chain's type in the kernel's words.
pub const fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

const fn policy(policy: ChainPolicy) -> u32 {
    match policy {
        ChainPolicy::Accept => 1,
        ChainPolicy::Drop => 0,
    }
}

/// NFTA_HOOK_HOOKNUM, _PRIORITY, _DEVS.
fn write_hook(hook: &mut Writer, base: &Base) {
    /// NFTA_DEVICE_NAME.
    const NAME: u16 = 1;
    /// NFTA_DEVICE_PREFIX, kernel 6.18: an nft that does not know it writes "*" as a literal name,
    /// which is accepted and hooks nothing (threat 42).
    const PREFIX: u16 = 2;
    hook.number(1, base.hook.number()).number(2, base.priority as u32);
    match &base.devices {
        Devices::None => {}
        Devices::Every => {
            hook.nest(4, |list| {
                list.bytes(PREFIX, &[0]);
            });
        }
        Devices::Named(names) => {
            hook.nest(4, |list| {
                for name in names {
                    list.text(NAME, name);
                }
            });
        }
    }
}

/// NFT_MSG_NEWSET.
pub fn set(family: Family, set: &Set, id: u32) -> Request {
    let mut body = Writer::default();
    body.text(1, TABLE).text(2, &set.name);
    body.number(3, set_flags(set));
    body.number(4, set_type(set)).number(5, key_length(set));
    body.number(10, id);
    if set.key.len() > 1 {
        body.nest(9, |description| {
            description.nest(2, |concat| {
                for part in &set.key {
                    concat.nest(LIST_ELEM, |field| {
                        field.number(1, part.length());
                    });
                }
            });
        });
    }
    // NFTNL_UDATA_SET_KEYBYTEORDER (libnftnl, udata.h): 2 is big-endian.
    let mut userdata = vec![0, 4];
    userdata.extend_from_slice(&2u32.to_ne_bytes());
    body.bytes(13, &userdata);
    request(kind::NEWSET, CREATE, family, body)
}

/// NFT_SET_* of a set of ours.
pub fn set_flags(set: &Set) -> u32 {
    let interval = if set.interval { SET_INTERVAL } else { 0 };
    let concat = if set.key.len() > 1 { SET_CONCAT } else { 0 };
    interval | concat
}

/// nft's number for a concatenation: six bits a part.
pub fn set_type(set: &Set) -> u32 {
    set.key.iter().fold(0, |sum, part| sum << 6 | part.set_type())
}

/// Length of a set's key in bytes.
pub fn key_length(set: &Set) -> u32 {
    match set.key.as_slice() {
        [only] => only.length(),
        parts => parts.iter().map(|part| part.length().next_multiple_of(4)).sum(),
    }
}

/// NFT_MSG_NEWSETELEM or NFT_MSG_DELSETELEM, in as many messages as needed.
pub fn elements(kind: u16, family: Family, set: &Set, list: &[Element]) -> Vec<Request> {
    let flags = if kind == self::kind::NEWSETELEM { CREATE } else { 0 };
    let written: Vec<Vec<u8>> = list.iter().map(|it| element(set, it)).collect();
    let mut requests = Vec::new();
    let mut rest = written.as_slice();
    while !rest.is_empty() {
        let mut size = 0;
        let count = rest
            .iter()
            .take_while(|it| {
                size += it.len();
                size <= ELEMENTS_PER_MESSAGE_BYTES
            })
            .count()
            .max(1);
        let mut body = Writer::default();
        body.text(1, TABLE).text(2, &set.name);
        body.nest(3, |list| rest[..count].iter().for_each(|it| list.0.extend_from_slice(it)));
        requests.push(request(kind, flags, family, body));
        rest = &rest[count..];
    }
    requests
}

/// One element; a range of a plain set is two, the second marking where it ends, exclusively.
fn element(set: &Set, element: &Element) -> Vec<u8> {
    let mut body = Writer::default();
    body.nest(LIST_ELEM, |it| {
        it.value(1, &element.first);
        if set.interval && set.key.len() > 1 {
            it.value(10, &element.last);
        }
    });
    if set.interval && set.key.len() == 1 {
        let end = crate::ruleset::successor(&element.last);
        // The last address of all has no end.
        if end != element.last {
            body.nest(LIST_ELEM, |it| {
                it.value(1, &end).number(3, ELEMENT_INTERVAL_END);
            });
        }
    }
    body.finish()
}

/// NFT_MSG_NEWRULE.
pub fn rule(family: Family, chain: &str, list: &[Expression], comment: &str) -> Request {
    /// Most rules fit, so that writing one allocates once.
    const USUAL: usize = 384;
    let mut body = Writer(Vec::with_capacity(USUAL));
    body.text(1, TABLE).text(2, chain);
    body.nest(4, |expressions| {
        for it in list {
            expressions.nest(LIST_ELEM, |out| write_expression(out, it));
        }
    });
    body.bytes(7, &comment_data(comment));
    request(kind::NEWRULE, CREATE | APPEND, family, body)
}

/// A comment as nft keeps it: NFTNL_UDATA_RULE_COMMENT, length, text, NUL (libnftnl, udata.h).
pub fn comment_data(comment: &str) -> Vec<u8> {
    [&[0, comment.len() as u8 + 1], comment.as_bytes(), &[0]].concat()
}

fn write_expression(out: &mut Writer, it: &Expression) {
    out.text(1, name(it));
    out.nest(2, |data| write_attributes(data, it));
}

/// The expression's name in the kernel.
fn name(it: &Expression) -> &str {
    match it {
        Expression::Meta { .. } | Expression::MetaSet { .. } => "meta",
        Expression::Ct { .. } => "ct",
        Expression::Fib { .. } => "fib",
        Expression::Payload { .. } => "payload",
        Expression::Bitwise { .. } => "bitwise",
        Expression::Cmp { .. } => "cmp",
        Expression::Lookup { .. } => "lookup",
        Expression::Immediate { .. } | Expression::Verdict { .. } => "immediate",
        Expression::Counter => "counter",
        Expression::Reject { .. } => "reject",
        Expression::Masquerade => "masq",
        Expression::Limit { .. } => "limit",
        Expression::Log { .. } => "log",
        Expression::Foreign { name, .. } => name,
    }
}

fn write_attributes(data: &mut Writer, it: &Expression) {
    match it {
        Expression::Meta { key, register } => {
            data.number(1, *register).number(2, *key);
        }
        Expression::MetaSet { key, register } => {
            data.number(2, *key).number(3, *register);
        }
        Expression::Ct { key, direction, register } => {
            data.number(1, *register).number(2, *key);
            if let Some(direction) = direction {
                data.bytes(3, &[*direction]);
            }
        }
        Expression::Fib { result, flags, register } => {
            data.number(1, *register).number(2, *result).number(3, *flags);
        }
        Expression::Payload { base, offset, length, register } => {
            data.number(1, *register).number(2, *base).number(3, *offset).number(4, *length);
        }
        Expression::Bitwise { register, mask, xor } => {
            data.number(1, *register).number(2, *register).number(3, mask.len() as u32);
            data.value(4, mask).value(5, xor);
        }
        Expression::Cmp { op, register, data: wanted } => {
            data.number(1, *register).number(2, *op).value(3, wanted);
        }
        Expression::Lookup { set, register } => {
            data.text(1, set).number(2, *register);
        }
        Expression::Immediate { register, data: constant } => {
            data.number(1, *register).value(2, constant);
        }
        Expression::Verdict { code, chain } => {
            data.number(1, 0);
            data.nest(2, |nest| {
                nest.nest(2, |verdict| {
                    verdict.number(1, *code as u32);
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        }
        Expression::Reject { kind, code } => {
            data.number(1, *kind).bytes(2, &[*code]);
        }
        Expression::Limit { rate, burst } => {
            /// In seconds.
            const UNIT: u64 = 1;
            data.bytes(1, &rate.to_be_bytes()).bytes(2, &UNIT.to_be_bytes()).number(3, *burst);
        }
        Expression::Log { group } => {
            data.bytes(1, &group.to_be_bytes());
        }
        Expression::Counter | Expression::Masquerade => {}
        Expression::Foreign { data: raw, .. } => data.0.extend_from_slice(raw),
    }
}
