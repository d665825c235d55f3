//! What rustables can build: tables, chains of the `inet` family, flushes, and rules whose every
//! expression it knows. The rest is [`super::message`]'s.

use rustables::expr::{
    Bitwise, Cmp, CmpOp, Conntrack, ConntrackKey, Counter, IcmpCode, Immediate, Lookup, Masquerade,
    Meta, MetaType, Payload, RawExpression, Register, Reject, RejectType, VerdictKind,
};
use rustables::{Batch, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily};

use super::message::{Request, comment_data};
use crate::ruleset::expression::{
    ACCEPT, CMP_EQ, CMP_GTE, CMP_LTE, CMP_NEQ, DROP, Expression, JUMP, RETURN,
};
use crate::ruleset::{self, Base, Family, TABLE};

/// Messages that rustables has built, in order: one buffer for all, since each batch of its own
/// costs it 128 KiB.
pub struct Plain(Batch);

impl Plain {
    /// None yet.
    pub fn new() -> Self {
        Plain(Batch::new())
    }

    /// NFT_MSG_NEWTABLE.
    pub fn table(&mut self, family: Family, flags: u32) {
        self.0.add(&named_table(family).with_flags(flags), MsgType::Add);
    }

    /// NFT_MSG_DELTABLE.
    pub fn delete_table(&mut self, family: Family) {
        self.0.add(&named_table(family), MsgType::Del);
    }

    /// NFT_MSG_NEWCHAIN of the `inet` family.
    pub fn inet_chain(&mut self, chain: &ruleset::Chain) {
        let mut built = named_chain(Family::Inet, &chain.name);
        if let Some(base) = &chain.base {
            built = built
                .with_hook(Hook::new(hook(base), base.priority))
                .with_policy(match base.policy {
                    ruleset::ChainPolicy::Accept => ChainPolicy::Accept,
                    ruleset::ChainPolicy::Drop => ChainPolicy::Drop,
                })
                .with_type(match base.kind {
                    ruleset::ChainKind::Filter => ChainType::Filter,
                    ruleset::ChainKind::Nat => ChainType::Nat,
                });
        }
        self.0.add(&built, MsgType::Add);
    }

    /// NFT_MSG_DELRULE without a handle: every rule of a chain.
    pub fn flush_chain(&mut self, family: Family, name: &str) {
        self.0.add(&empty_rule(family, name), MsgType::Del);
    }

    /// NFT_MSG_NEWRULE; `false` and nothing built where rustables lacks an expression.
    pub fn rule(
        &mut self,
        family: Family,
        chain: &str,
        list: &[Expression],
        comment: &str,
    ) -> bool {
        let mut rule = empty_rule(family, chain).with_userdata(comment_data(comment));
        for it in list {
            match expression(it) {
                Some(it) => rule.add_expr(it),
                None => return false,
            }
        }
        self.0.add(&rule, MsgType::Add);
        true
    }

    /// The messages, without the batch's begin and end.
    pub fn finish(self) -> Vec<Request> {
        let bytes = self.0.finalize();
        let mut rest = bytes.as_slice();
        let mut requests = Vec::new();
        while let Some((message, after)) = split_first(rest) {
            requests.push(message);
            rest = after;
        }
        // Begin and end.
        requests.pop();
        requests.drain(..1);
        requests
    }
}

fn expression(it: &Expression) -> Option<RawExpression> {
    Some(match it {
        Expression::Meta { key, register } => {
            Meta::new(meta(*key)?).with_dreg(self::register(*register)?).into()
        }
        Expression::MetaSet { key, register } => {
            Meta::default().with_key(meta(*key)?).with_sreg(self::register(*register)?).into()
        }
        Expression::Ct { key: 0, direction: None, register: 1 } => {
            Conntrack::new(ConntrackKey::State).into()
        }
        Expression::Payload { base, offset, length, register } => Payload::default()
            .with_dreg(self::register(*register)?)
            .with_base(*base)
            .with_offset(*offset)
            .with_len(*length)
            .into(),
        Expression::Bitwise { register: 1, mask, xor } => {
            Bitwise::new(mask.clone(), xor.clone()).ok()?.into()
        }
        Expression::Cmp { op, register: 1, data } => Cmp::new(compare(*op)?, data.clone()).into(),
        Expression::Lookup { set, register } => {
            Lookup::default().with_set(set).with_sreg(self::register(*register)?).into()
        }
        Expression::Immediate { register, data } => {
            Immediate::new_data(data.clone(), self::register(*register)?).into()
        }
        Expression::Verdict { code, chain } => {
            Immediate::new_verdict(verdict(*code, chain)?).into()
        }
        Expression::Counter => Counter::default().into(),
        Expression::Reject { kind: 1, .. } => {
            Reject::default().with_type(RejectType::TcpRst).with_icmp_code(IcmpCode::NoRoute).into()
        }
        Expression::Reject { kind: 2, code: 3 } => Reject::default()
            .with_type(RejectType::IcmpxUnreach)
            .with_icmp_code(IcmpCode::AdminProhibited)
            .into(),
        Expression::Masquerade => Masquerade::default().into(),
        _ => return None,
    })
}

fn meta(key: u32) -> Option<MetaType> {
    [
        MetaType::Protocol,
        MetaType::Mark,
        MetaType::IifName,
        MetaType::OifName,
        MetaType::IifType,
        MetaType::OifType,
        MetaType::NfProto,
        MetaType::L4Proto,
    ]
    .into_iter()
    .find(|&it| it as u32 == key)
}

fn register(number: u32) -> Option<Register> {
    Some(match number {
        1 => Register::Reg1,
        2 => Register::Reg2,
        3 => Register::Reg3,
        4 => Register::Reg4,
        _ => return None,
    })
}

fn compare(op: u32) -> Option<CmpOp> {
    Some(match op {
        CMP_EQ => CmpOp::Eq,
        CMP_NEQ => CmpOp::Neq,
        CMP_LTE => CmpOp::Lte,
        CMP_GTE => CmpOp::Gte,
        _ => return None,
    })
}

fn verdict(code: i32, chain: &Option<String>) -> Option<VerdictKind> {
    Some(match (code, chain) {
        (ACCEPT, None) => VerdictKind::Accept,
        (DROP, None) => VerdictKind::Drop,
        (RETURN, None) => VerdictKind::Return,
        (JUMP, Some(chain)) => VerdictKind::Jump { chain: chain.clone() },
        _ => return None,
    })
}

fn hook(base: &Base) -> HookClass {
    match base.hook {
        ruleset::Hook::Prerouting => HookClass::PreRouting,
        ruleset::Hook::Input => HookClass::In,
        ruleset::Hook::Forward => HookClass::Forward,
        ruleset::Hook::Output => HookClass::Out,
        ruleset::Hook::Postrouting | ruleset::Hook::Egress => HookClass::PostRouting,
    }
}

fn protocol_family(family: Family) -> ProtocolFamily {
    match family {
        Family::Inet => ProtocolFamily::Inet,
        Family::Netdev => ProtocolFamily::NetDev,
    }
}

fn named_table(family: Family) -> rustables::Table {
    rustables::Table::new(protocol_family(family)).with_name(TABLE)
}

fn named_chain(family: Family, name: &str) -> rustables::Chain {
    rustables::Chain::new(&named_table(family)).with_name(name)
}

fn empty_rule(family: Family, chain: &str) -> rustables::Rule {
    rustables::Rule::new(&named_chain(family, chain)).expect("the chain has a name and a table")
}

fn split_first(batch: &[u8]) -> Option<(Request, &[u8])> {
    /// NLM_F_REQUEST and NLM_F_ACK: the batch sets its own.
    const OURS: u16 = 0x1 | 0x4;
    let length = u32::from_ne_bytes(batch.get(..4)?.try_into().ok()?) as usize;
    let message = batch.get(..length)?;
    let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
    let request = Request {
        kind: half(4) & 0xff,
        flags: half(6) & !OURS,
        family: message[16],
        body: message[20..].to_vec(),
    };
    Some((request, batch.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
