//! What rustables builds: tables, chains of the `inet` family, flushes.
//!
//! [`super::message`] builds the rest. A third of our rules need what rustables lacks, and one encoder
//! for all of them is simpler and faster than two. The tests hold its every rule to rustables' own,
//! where rustables knows it.

use rustables::{Batch, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily};

use super::message::Request;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::message::{self, comment_data};
    use crate::netlink::Attributes;
    use crate::policy::{Inbound, LinkPattern, MessageShape, Policy, Protocol, Server, Tunnel};
    use crate::ruleset::expression::{
        ACCEPT, CMP_EQ, CMP_GTE, CMP_LTE, CMP_NEQ, DROP, Expression, JUMP, RETURN, lower,
    };
    use crate::ruleset::{Table, compile, guard};
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use rustables::expr::{
        Bitwise, Cmp, CmpOp, Conntrack, ConntrackKey, Counter, IcmpCode, Immediate, Lookup,
        Masquerade, Meta, MetaType, Payload, RawExpression, Register, Reject, RejectType,
        VerdictKind,
    };

    /// NFT_MSG_NEWRULE as rustables builds it; `None` where it lacks an expression.
    fn rule(family: Family, chain: &str, list: &[Expression], comment: &str) -> Option<Request> {
        let list: Vec<RawExpression> = list.iter().map(expression).collect::<Option<_>>()?;
        let rule = empty_rule(family, chain).with_expressions(list);
        let mut plain = Plain::new();
        plain.0.add(&rule.with_userdata(comment_data(comment)), MsgType::Add);
        Some(only(plain))
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
                Bitwise::new(mask.to_vec(), xor.to_vec()).ok()?.into()
            }
            Expression::Cmp { op, register: 1, data } => {
                Cmp::new(compare(*op)?, data.to_vec()).into()
            }
            Expression::Lookup { set, register } => {
                Lookup::default().with_set(set).with_sreg(self::register(*register)?).into()
            }
            Expression::Immediate { register, data } => {
                Immediate::new_data(data.to_vec(), self::register(*register)?).into()
            }
            Expression::Verdict { code, chain } => {
                Immediate::new_verdict(verdict(*code, chain)?).into()
            }
            Expression::Counter => Counter::default().into(),
            Expression::Reject { kind: 1, .. } => Reject::default()
                .with_type(RejectType::TcpRst)
                .with_icmp_code(IcmpCode::NoRoute)
                .into(),
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
            MetaType::Iif,
            MetaType::Oif,
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

    /// Attributes as a tree, in no order.
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Node {
        Leaf(u16, Vec<u8>),
        Nest(u16, Vec<Node>),
    }

    /// What an attribute holds, by the kernel's policies (net/netfilter/nf_tables_api.c, nft_*.c).
    #[derive(Clone, Copy)]
    enum Holds {
        Bytes,
        Text,
        List(fn(u16) -> Holds),
        /// NFTA_EXPR_NAME and NFTA_EXPR_DATA: the name says what the data are.
        Expression,
    }

    fn of_rule(kind: u16) -> Holds {
        match kind {
            1 | 2 => Holds::Text,
            4 => Holds::List(|_| Holds::Expression),
            _ => Holds::Bytes,
        }
    }

    fn of_chain(kind: u16) -> Holds {
        match kind {
            1 | 3 | 7 => Holds::Text,
            4 => Holds::List(|_| Holds::Bytes),
            _ => Holds::Bytes,
        }
    }

    fn of_table(kind: u16) -> Holds {
        if kind == 1 { Holds::Text } else { Holds::Bytes }
    }

    fn of_data(name: &str) -> fn(u16) -> Holds {
        fn value(_: u16) -> Holds {
            Holds::Bytes
        }
        match name {
            "cmp" => |kind| if kind == 3 { Holds::List(value) } else { Holds::Bytes },
            "bitwise" => |kind| if kind >= 4 { Holds::List(value) } else { Holds::Bytes },
            "lookup" => |kind| if kind == 1 { Holds::Text } else { Holds::Bytes },
            "immediate" => |kind| if kind == 2 { Holds::List(of_immediate) } else { Holds::Bytes },
            _ => value,
        }
    }

    /// NFTA_DATA_VALUE, or NFTA_DATA_VERDICT with NFTA_VERDICT_CODE and _CHAIN.
    fn of_immediate(kind: u16) -> Holds {
        match kind {
            2 => Holds::List(|kind| if kind == 2 { Holds::Text } else { Holds::Bytes }),
            _ => Holds::Bytes,
        }
    }

    fn tree(bytes: &[u8], holds: fn(u16) -> Holds) -> Vec<Node> {
        let mut nodes: Vec<Node> =
            Attributes(bytes).map(|(kind, value)| node(kind, value, holds(kind))).collect();
        nodes.sort();
        nodes
    }

    fn node(kind: u16, value: &[u8], holds: Holds) -> Node {
        match holds {
            Holds::Bytes => Node::Leaf(kind, value.to_vec()),
            Holds::Text => Node::Leaf(kind, text(value)),
            // The order of expressions counts.
            Holds::List(inner) if matches!(inner(1), Holds::Expression) => Node::Nest(
                kind,
                Attributes(value).map(|(kind, it)| node(kind, it, Holds::Expression)).collect(),
            ),
            Holds::List(inner) => Node::Nest(kind, tree(value, inner)),
            Holds::Expression => {
                let name = text(Attributes(value).get(1).unwrap_or_default());
                let data = Attributes(value).get(2).unwrap_or_default();
                let inner = tree(data, of_data(&String::from_utf8_lossy(&name)));
                // A counter begins at zero, said or not; a TCP reset has no ICMP code.
                let inner = match name.as_slice() {
                    b"counter" => inner.into_iter().filter(is_not_zero).collect(),
                    b"reject" if inner.contains(&Node::Leaf(1, vec![0, 0, 0, 1])) => {
                        inner.into_iter().filter(|it| !matches!(it, Node::Leaf(2, _))).collect()
                    }
                    _ => inner,
                };
                Node::Nest(kind, vec![Node::Leaf(1, name), Node::Nest(2, inner)])
            }
        }
    }

    fn is_not_zero(node: &Node) -> bool {
        !matches!(node, Node::Leaf(_, value) if value.iter().all(|byte| *byte == 0))
    }

    fn text(value: &[u8]) -> Vec<u8> {
        value.strip_suffix(&[0]).unwrap_or(value).to_vec()
    }

    fn is_same(one: &Request, other: &Request, holds: fn(u16) -> Holds) -> Result<(), String> {
        let trees = [one, other].map(|it| tree(&it.body, holds));
        let heads = [one, other].map(|it| (it.kind, it.flags, it.family));
        match trees[0] == trees[1] && heads[0] == heads[1] {
            true => Ok(()),
            false => Err(format!("{heads:?}\n{:#?}\n{:#?}", trees[0], trees[1])),
        }
    }

    fn only(plain: Plain) -> Request {
        let mut built = plain.finish();
        assert_eq!(built.len(), 1);
        built.remove(0)
    }

    /// Whether each rule of the table comes out alike; how many rustables could build.
    fn rules_are_alike(table: &Table) -> Result<usize, String> {
        let mut built = 0;
        for chain in &table.chains {
            for rule in &chain.rules {
                let list = lower(rule);
                let (family, chain) = (table.family, &chain.name);
                if let Some(theirs) = self::rule(family, chain, &list, &rule.comment) {
                    let own = message::rule(family, chain, &list, &rule.comment);
                    is_same(&theirs, &own, of_rule)?;
                    built += 1;
                }
            }
        }
        Ok(built)
    }

    fn chains_are_alike(table: &Table) -> Result<(), String> {
        for chain in table.chains.iter().filter(|_| table.family == Family::Inet) {
            let mut plain = Plain::new();
            plain.inet_chain(chain);
            // Our own encoder for chains serves the other family; the rest is the same.
            let mut own = message::netdev_chain(chain);
            own.family = Family::Inet.number();
            is_same(&only(plain), &own, of_chain)?;
        }
        Ok(())
    }

    fn policies() -> impl Strategy<Value = Policy> {
        let servers = subsequence(
            vec![
                server("198.51.100.7:51820", Protocol::Udp, MessageShape::Wireguard),
                server("[2001:db8::7]:51820", Protocol::Udp, MessageShape::Wireguard),
                server("198.51.100.8:443", Protocol::Tcp, MessageShape::Any),
                server("[2001:db8::8]:443", Protocol::Udp, MessageShape::Any),
            ],
            0..=4,
        );
        let lan = subsequence(vec!["192.168.1.0/24", "fd00:1::/64"], 0..=2);
        let own = subsequence(vec!["10.64.0.2", "fd00:64::2"], 1..=2);
        let names = vec![LinkPattern::Exact("docker0".into()), LinkPattern::Prefix("br-".into())];
        let switches = (any::<[bool; 5]>(), any::<u32>());
        (servers, lan, own, subsequence(names, 0..=2), switches).prop_map(
            |(servers, lan, own, names, (switches, mark))| Policy {
                mark,
                tunnel: switches[0].then(|| Tunnel {
                    interface: "wg0".into(),
                    kinds: ["tun", "wireguard"].into(),
                    addresses: own.iter().map(|it| it.parse().unwrap()).collect(),
                }),
                servers: servers.into_iter().collect(),
                dhcp: switches[1],
                lan: lan.iter().map(|it| it.parse().unwrap()).collect(),
                lan_dns: lan
                    .iter()
                    .map(|it| it.split('/').next().unwrap().parse().unwrap())
                    .collect(),
                ntp: own.iter().map(|it| it.parse().unwrap()).collect(),
                inbound: lan.iter().map(|it| inbound(it)).collect(),
                internal: names.iter().cloned().collect(),
                internal_ports: names.into_iter().collect(),
                forward_into_tunnel: switches[2],
                egress_guard: switches[3],
                routing_guard: switches[4],
            },
        )
    }

    fn server(endpoint: &str, protocol: Protocol, shape: MessageShape) -> Server {
        Server { endpoint: endpoint.parse().unwrap(), protocol, shape }
    }

    fn inbound(from: &str) -> Inbound {
        Inbound { protocol: Protocol::Tcp, port: 22, from: from.parse().unwrap() }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

        #[test]
        fn both_encoders_say_the_same(policy in policies()) {
            let tables = [compile(&policy), guard(&policy, None)];
            for table in &tables {
                prop_assert!(chains_are_alike(table).is_ok(), "{:?}", chains_are_alike(table));
            }
            let built = rules_are_alike(&tables[0]).and_then(|it| Ok(it + rules_are_alike(&tables[1])?));
            let all: usize = tables.iter().flat_map(|it| &it.chains).map(|it| it.rules.len()).sum();
            // A judge that knows few of them would find nothing.
            prop_assert!(built.as_ref().is_ok_and(|it| it * 3 > all), "{built:?} of {all}");
        }
    }

    #[test]
    fn both_encoders_select_the_same() {
        for family in [Family::Inet, Family::Netdev] {
            let mut plain = Plain::new();
            plain.flush_chain(family, "output");
            plain.delete_table(family);
            plain.table(family, 6);
            let built = plain.finish();
            let flush = message::select(message::kind::DELRULE, family, Some("output"));
            is_same(&built[0], &flush, of_rule).unwrap();
            let delete = message::select(message::kind::DELTABLE, family, None);
            is_same(&built[1], &delete, of_table).unwrap();
            let mut table = message::select(message::kind::NEWTABLE, family, None);
            table.flags = message::CREATE;
            table.body.extend([8, 0, 2, 0, 0, 0, 0, 6]);
            is_same(&built[2], &table, of_table).unwrap();
        }
    }

    /// The comparison itself must be able to fail.
    #[test]
    fn a_changed_rule_is_a_difference() {
        let verdict = |code| Expression::Verdict { code, chain: None };
        let list = [Expression::Counter, verdict(DROP)];
        let built = |list: &[Expression], comment: &str| {
            rule(Family::Inet, "output", list, comment).expect("rustables knows all of it")
        };
        let own = message::rule(Family::Inet, "output", &list, "blocked");
        is_same(&built(&list, "blocked"), &own, of_rule).unwrap();
        for other in [
            built(&[Expression::Counter, verdict(ACCEPT)], "blocked"),
            built(&[verdict(DROP), Expression::Counter], "blocked"),
            built(&[verdict(DROP)], "blocked"),
            built(&list, "blockec"),
        ] {
            assert!(is_same(&other, &own, of_rule).is_err());
        }
    }
}
