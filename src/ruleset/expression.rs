//! Rules as the kernel holds them: a list of expressions on registers.
//!
//! [`lower`] is what is sent; the reader of the live table gives the same type, so that "intact"
//! is plain equality; [`raise`] turns a live rule back into words.

use smallvec::{SmallVec, smallvec};

use super::{Action, Field, LOG_GROUP, Load, Match, Rejection, Rule, Test, Value};

/// One expression (include/uapi/linux/netfilter/nf_tables.h). Registers are numbered as the kernel
/// reports them: 1 to 4 for sixteen bytes, 9 and up for four bytes within those.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the attributes are the kernel's own")]
pub enum Expression {
    Meta {
        key: u32,
        register: u32,
    },
    MetaSet {
        key: u32,
        register: u32,
    },
    Ct {
        key: u32,
        direction: Option<u8>,
        register: u32,
    },
    Fib {
        result: u32,
        flags: u32,
        register: u32,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    Bitwise {
        register: u32,
        mask: Value,
        xor: Value,
    },
    Cmp {
        op: u32,
        register: u32,
        data: Value,
    },
    Lookup {
        set: String,
        register: u32,
    },
    Immediate {
        register: u32,
        data: Value,
    },
    Verdict {
        code: i32,
        chain: Option<String>,
    },
    Counter,
    Reject {
        kind: u32,
        code: u8,
    },
    Masquerade,
    /// So many packets a second.
    Limit {
        rate: u64,
        burst: u32,
    },
    Log {
        group: u16,
    },
    /// Something that no rule of ours holds.
    Foreign {
        name: String,
        data: Vec<u8>,
    },
}

/// NFT_CMP_EQ
pub const CMP_EQ: u32 = 0;
/// NFT_CMP_NEQ
pub const CMP_NEQ: u32 = 1;
/// NFT_CMP_LTE
pub const CMP_LTE: u32 = 3;
/// NFT_CMP_GTE
pub const CMP_GTE: u32 = 5;
/// NF_DROP
pub const DROP: i32 = 0;
/// NF_ACCEPT
pub const ACCEPT: i32 = 1;
/// NFT_JUMP
pub const JUMP: i32 = -3;
/// NFT_RETURN
pub const RETURN: i32 = -5;
const META_MARK: u32 = 3;
/// NFT_REJECT_TCP_RST and NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_ADMIN_PROHIBITED.
const REJECT_TCP_RST: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ICMPX_ADMIN_PROHIBITED: u8 = 3;

/// A rule as the kernel wants it.
pub fn lower(rule: &Rule) -> Vec<Expression> {
    // Two for most matches, a counter, and two at most for an action.
    let mut list = Vec::with_capacity(2 * rule.matches.len() + 3);
    for it in &rule.matches {
        lower_match(it, &mut list);
    }
    if rule.counter {
        list.push(Expression::Counter);
    }
    match &rule.action {
        Action::Accept => list.push(Expression::Verdict { code: ACCEPT, chain: None }),
        Action::Drop => list.push(Expression::Verdict { code: DROP, chain: None }),
        Action::Return => list.push(Expression::Verdict { code: RETURN, chain: None }),
        Action::Jump(chain) => {
            list.push(Expression::Verdict { code: JUMP, chain: Some(chain.clone()) });
        }
        Action::Reject(Rejection::TcpReset) => {
            list.push(Expression::Reject { kind: REJECT_TCP_RST, code: 0 });
        }
        Action::Reject(Rejection::AdminProhibited) => {
            list.push(Expression::Reject { kind: REJECT_ICMPX, code: ICMPX_ADMIN_PROHIBITED });
        }
        Action::SetMark(mark) => {
            list.push(Expression::Immediate {
                register: 1,
                data: Value::from_slice(&mark.to_ne_bytes()),
            });
            list.push(Expression::MetaSet { key: META_MARK, register: 1 });
        }
        Action::Masquerade => list.push(Expression::Masquerade),
        Action::Log { rate, burst } => {
            list.push(Expression::Limit { rate: *rate, burst: *burst });
            list.push(Expression::Log { group: LOG_GROUP });
        }
    }
    list
}

fn lower_match(it: &Match, list: &mut Vec<Expression>) {
    let mut word = 0;
    for field in &it.fields {
        list.push(load(*field, register(word)));
        word += field.kind().length().div_ceil(4);
    }
    match &it.test {
        Test::Is(data) => list.push(cmp(CMP_EQ, data)),
        Test::StartsWith(data) => list.push(cmp(CMP_EQ, data)),
        Test::Between(first, last) => {
            list.push(cmp(CMP_GTE, first));
            list.push(cmp(CMP_LTE, last));
        }
        Test::Masked { mask, value } => {
            list.push(bitwise(mask));
            list.push(cmp(CMP_EQ, value));
        }
        Test::AnyOf(mask) => {
            list.push(bitwise(mask));
            list.push(cmp(CMP_NEQ, &Value::from_elem(0, mask.len())));
        }
        Test::In(set) => list.push(Expression::Lookup { set: set.clone(), register: 1 }),
    }
}

fn load(field: Field, register: u32) -> Expression {
    match field.load() {
        Load::Meta(key) => Expression::Meta { key, register },
        Load::Ct(key, direction) => Expression::Ct { key, direction, register },
        Load::Fib(result, flags) => Expression::Fib { result, flags, register },
        Load::Payload(base, offset, length) => {
            Expression::Payload { base, offset, length, register }
        }
    }
}

fn cmp(op: u32, data: &[u8]) -> Expression {
    Expression::Cmp { op, register: 1, data: Value::from_slice(data) }
}

fn bitwise(mask: &[u8]) -> Expression {
    Expression::Bitwise {
        register: 1,
        mask: Value::from_slice(mask),
        xor: Value::from_elem(0, mask.len()),
    }
}

/// The register that begins at the given four-byte word, numbered as the kernel reports it
/// (nft_dump_register): NFT_REG32_00 is 8, and NFT_REG_1 is the same place.
const fn register(word: u32) -> u32 {
    match word % 4 {
        0 => 1 + word / 4,
        _ => 8 + word,
    }
}

/// A live rule in the words of [`Rule`], which lower to the same; `None` where it holds what no rule
/// of ours holds.
pub fn raise(list: &[Expression], comment: &str) -> Option<Rule> {
    let mut rest = list;
    let mut matches = Vec::new();
    while let Some((it, after)) = raise_match(rest, &matches) {
        matches.push(it);
        rest = after;
    }
    let counter = rest.first() == Some(&Expression::Counter);
    if counter {
        rest = &rest[1..];
    }
    let action = match rest {
        [Expression::Verdict { code, chain }] => match (*code, chain) {
            (ACCEPT, None) => Action::Accept,
            (DROP, None) => Action::Drop,
            (RETURN, None) => Action::Return,
            (JUMP, Some(chain)) => Action::Jump(chain.clone()),
            _ => return None,
        },
        [Expression::Reject { kind: REJECT_TCP_RST, .. }] => Action::Reject(Rejection::TcpReset),
        [Expression::Reject { kind: REJECT_ICMPX, code: ICMPX_ADMIN_PROHIBITED }] => {
            Action::Reject(Rejection::AdminProhibited)
        }
        [Expression::Masquerade] => Action::Masquerade,
        [Expression::Limit { rate, burst }, Expression::Log { group: LOG_GROUP }] => {
            Action::Log { rate: *rate, burst: *burst }
        }
        [Expression::Immediate { data, .. }, Expression::MetaSet { key: META_MARK, .. }] => {
            Action::SetMark(u32::from_ne_bytes(data.as_slice().try_into().ok()?))
        }
        _ => return None,
    };
    let rule = Rule { matches, counter, action, comment: comment.into() };
    (lower(&rule) == list).then_some(rule)
}

/// Fields of several protocols are loaded alike: which is meant shows in the matches before.
fn is_meant(field: Field, before: &[Match]) -> bool {
    let known = |number: u8| {
        before.iter().any(|it| {
            it.fields[..] == [Field::MetaL4proto] && it.test == Test::Is(smallvec![number])
        })
    };
    match field {
        Field::UdpSport | Field::UdpDport => known(17),
        Field::IcmpType => !known(58),
        _ => true,
    }
}

fn raise_match<'a>(list: &'a [Expression], before: &[Match]) -> Option<(Match, &'a [Expression])> {
    let mut fields: SmallVec<[Field; 4]> = SmallVec::new();
    let mut word = 0;
    let mut rest = list;
    while let Some(field) = Field::ALL.into_iter().find(|&field| {
        is_meant(field, before) && rest.first() == Some(&load(field, register(word)))
    }) {
        fields.push(field);
        word += field.kind().length().div_ceil(4);
        rest = &rest[1..];
    }
    if fields.is_empty() {
        return None;
    }
    let (test, taken) = match rest {
        [Expression::Lookup { set, register: 1 }, ..] => (Test::In(set.clone()), 1),
        [
            Expression::Cmp { op: CMP_GTE, data: first, .. },
            Expression::Cmp { op: CMP_LTE, data: last, .. },
            ..,
        ] => (Test::Between(first.clone(), last.clone()), 2),
        [Expression::Bitwise { mask, .. }, Expression::Cmp { op: CMP_EQ, data, .. }, ..] => {
            (Test::Masked { mask: mask.clone(), value: data.clone() }, 2)
        }
        [Expression::Bitwise { mask, .. }, Expression::Cmp { op: CMP_NEQ, .. }, ..] => {
            (Test::AnyOf(mask.clone()), 2)
        }
        [Expression::Cmp { op: CMP_EQ, data, .. }, ..] => {
            match data.len() < fields[0].kind().length() as usize {
                true => (Test::StartsWith(data.clone()), 1),
                false => (Test::Is(data.clone()), 1),
            }
        }
        _ => return None,
    };
    Some((Match { fields, test }, &rest[taken..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, Tunnel};
    use crate::ruleset::{compile, text};
    use std::net::Ipv4Addr;

    #[test]
    fn a_rule_is_raised_into_its_own_words() {
        let tunnel = Tunnel {
            interface: "wg0".into(),
            kinds: ["wireguard"].into(),
            addresses: [Ipv4Addr::new(10, 64, 0, 2).into()].into(),
        };
        let policy = Policy { dhcp: true, tunnel: Some(tunnel), ..Policy::strictest() };
        for chain in compile(&policy).chains {
            for rule in chain.rules {
                let raised = raise(&lower(&rule), &rule.comment).map(|it| text::rule(&it));
                assert_eq!(raised, Some(text::rule(&rule)));
            }
        }
    }

    /// Shown in words of ours it would be taken for what it is not.
    #[test]
    fn a_rule_that_only_looks_like_ours_is_not_raised() {
        let mark = Expression::Meta { key: META_MARK, register: 1 };
        let mask = |xor| Expression::Bitwise { register: 1, mask: smallvec![1; 4], xor };
        let accept = Expression::Verdict { code: ACCEPT, chain: None };
        let rule = |xor| [mark.clone(), mask(xor), cmp(CMP_EQ, &[1; 4]), accept.clone()];
        assert!(raise(&rule(smallvec![0; 4]), "").is_some());
        assert!(raise(&rule(smallvec![7; 4]), "").is_none());
    }
}
