//! The words that rules are made of: constants of the kernel, conditions, the two families.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use smallvec::smallvec;

use super::super::{
    Action, Base, Chain, ChainKind, ChainPolicy, Family, Field, Hook, Match, Rule, Test, Value,
    ValueKind,
};
use super::Devices;
use crate::policy::{LinkPattern, Protocol};

/// LOOPBACK_IFINDEX (include/net/flow.h): only `lo` has it, whatever links are called. Not
/// ARPHRD_LOOPBACK, which who holds a tap may give it (TUNSETLINK).
pub(super) const LOOPBACK: u32 = 1;
/// ARPHRD_ETHER (include/uapi/linux/if_arp.h).
pub(super) const ETHERNET: u16 = 1;
/// RTN_LOCAL (include/uapi/linux/rtnetlink.h).
pub(super) const RTN_LOCAL: u32 = 2;
/// IPS_DST_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h).
pub(super) const IPS_DST_NAT: u32 = 1 << 5;
/// NF_CT_STATE_BIT(IP_CT_ESTABLISHED), as nft_ct reports it.
pub(super) const CT_ESTABLISHED: u32 = 1 << 1;
/// NF_CT_STATE_BIT(IP_CT_RELATED).
pub(super) const CT_RELATED: u32 = 1 << 2;
pub(super) const CT_REPLY: u8 = 1;
pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
pub(super) const ETH_P_ARP: u16 = 0x0806;
/// 802.1X: without it a link with port authentication never comes up.
pub(super) const ETH_P_PAE: u16 = 0x888e;
pub(super) const ETH_P_8021Q: u16 = 0x8100;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const ICMP: u8 = 1;
pub(super) const IGMP: u8 = 2;
pub(super) const TCP: u8 = Protocol::Tcp.number();
pub(super) const UDP: u8 = Protocol::Udp.number();
pub(super) const ICMPV6: u8 = 58;
/// RFC 2131, section 3.
pub(super) const DHCP_COOKIE: u32 = 0x6382_5363;
/// Before conntrack (-200), so that a probe of the tunnel's address leaves no trace (threat 9).
pub(super) const BEFORE_CONNTRACK: i32 = -310;
/// NF_IP_PRI_MANGLE: after conntrack, before routing.
pub(super) const MANGLE: i32 = -150;
/// NF_IP_PRI_FILTER; after a foreign DNAT (-100), so the true destination is judged (threat 34).
pub(super) const FILTER: i32 = 0;
/// NF_IP_PRI_NAT_SRC.
pub(super) const SOURCE_NAT: i32 = 100;
/// After everything else, so that the link is the true last one (threats 35, 36).
pub(super) const LAST: i32 = i32::MAX;
/// The two address families, each with its own names for the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

pub(super) const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];
impl Ip {
    pub(super) fn has(self, address: IpAddr) -> bool {
        (self == Ip::V4) == address.is_ipv4()
    }

    pub(super) fn select<'a>(
        self,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Vec<Vec<u8>> {
        addresses.into_iter().filter(|&&address| self.has(address)).map(|&a| octets(a)).collect()
    }

    pub(super) fn set(self, name: &str) -> String {
        match self {
            Ip::V4 => format!("{name}4"),
            Ip::V6 => format!("{name}6"),
        }
    }

    pub(super) fn kind(self) -> ValueKind {
        match self {
            Ip::V4 => ValueKind::Ipv4,
            Ip::V6 => ValueKind::Ipv6,
        }
    }

    pub(super) fn saddr(self) -> Field {
        match self {
            Ip::V4 => Field::IpSaddr,
            Ip::V6 => Field::Ip6Saddr,
        }
    }

    pub(super) fn daddr(self) -> Field {
        match self {
            Ip::V4 => Field::IpDaddr,
            Ip::V6 => Field::Ip6Daddr,
        }
    }

    pub(super) fn ct_original_daddr(self) -> Field {
        match self {
            Ip::V4 => Field::CtOriginalIpDaddr,
            Ip::V6 => Field::CtOriginalIp6Daddr,
        }
    }

    pub(super) fn icmp_type(self) -> Field {
        match self {
            Ip::V4 => Field::IcmpType,
            Ip::V6 => Field::Icmpv6Type,
        }
    }
}

pub(super) fn of_family(
    family: Family,
    ip: Ip,
    matches: impl IntoIterator<Item = Match>,
) -> Vec<Match> {
    let first = match (family, ip) {
        (Family::Inet, Ip::V4) => is(Field::MetaNfproto, [NFPROTO_IPV4]),
        (Family::Inet, Ip::V6) => is(Field::MetaNfproto, [NFPROTO_IPV6]),
        (Family::Netdev, Ip::V4) => is(Field::MetaProtocol, ETH_P_IP.to_be_bytes()),
        (Family::Netdev, Ip::V6) => is(Field::MetaProtocol, ETH_P_IPV6.to_be_bytes()),
    };
    std::iter::once(first).chain(matches).collect()
}

/// The header is that family's.
pub(super) fn version(ip: Ip) -> Match {
    let first: u8 = match ip {
        Ip::V4 => 0x40,
        Ip::V6 => 0x60,
    };
    between(Field::IpVersion, [first], [first | 0x0f])
}

/// Its offset is not zero. In IPv6 only where the fragment header stands first, as ours does.
pub(super) fn later_fragment(ip: Ip) -> Vec<Match> {
    /// NEXTHDR_FRAGMENT (RFC 8200, 4.5).
    const FRAGMENT: u8 = 44;
    match ip {
        Ip::V4 => vec![any_of(Field::IpFragOff, 0x1fff_u16.to_be_bytes())],
        Ip::V6 => vec![
            is(Field::Ip6Nexthdr, [FRAGMENT]),
            any_of(Field::Ip6FragOff, 0xfff8_u16.to_be_bytes()),
        ],
    }
}

pub(super) fn families(addresses: impl Iterator<Item = IpAddr> + Clone) -> Vec<Ip> {
    BOTH.into_iter().filter(|ip| addresses.clone().any(|address| ip.has(address))).collect()
}

pub(super) fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: None, rules }
}

pub(super) fn base(hook: Hook, priority: i32, policy: ChainPolicy) -> Base {
    Base { kind: ChainKind::Filter, hook, priority, policy, devices: Devices::None }
}

pub(super) fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { matches: matches.into(), counter: false, action, comment: comment.into() }
}

pub(super) fn counted(matches: impl Into<Vec<Match>>, action: Action, comment: &str) -> Rule {
    Rule { counter: true, ..rule(matches, action, comment) }
}

pub(super) fn single(field: Field, test: Test) -> Match {
    Match { fields: smallvec![field], test }
}

pub(super) fn is(field: Field, value: impl AsRef<[u8]>) -> Match {
    single(field, Test::Is(Value::from_slice(value.as_ref())))
}

pub(super) fn between<const N: usize>(field: Field, first: [u8; N], last: [u8; N]) -> Match {
    single(field, Test::Between(Value::from_slice(&first), Value::from_slice(&last)))
}

pub(super) fn any_of(field: Field, mask: impl AsRef<[u8]>) -> Match {
    single(field, Test::AnyOf(Value::from_slice(mask.as_ref())))
}

pub(super) fn is_in(field: Field, set: String) -> Match {
    single(field, Test::In(set))
}

pub(super) fn concat(fields: impl IntoIterator<Item = Field>, set: &str) -> Match {
    Match { fields: fields.into_iter().collect(), test: Test::In(set.into()) }
}

pub(super) fn masked(field: Field, net: &IpNet) -> Match {
    single(
        field,
        Test::Masked { mask: octets(net.netmask()).into(), value: octets(net.network()).into() },
    )
}

pub(super) fn link_local(field: Field) -> Match {
    let net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
    masked(field, &IpNet::V6(net))
}

pub(super) fn to_ntp(ip: Ip) -> [Match; 3] {
    let port = is(Field::UdpDport, 123_u16.to_be_bytes());
    [protocol(UDP), port, is_in(ip.daddr(), ip.set("ntp"))]
}

/// By its ports: from the client's to the server's (RFC 2131, 4.1).
pub(super) fn lease_request() -> [Match; 3] {
    let [client, server] = [68_u16, 67].map(u16::to_be_bytes);
    [protocol(UDP), is(Field::UdpSport, client), is(Field::UdpDport, server)]
}

pub(super) fn protocol(number: u8) -> Match {
    is(Field::MetaL4proto, [number])
}

pub(super) fn is_loopback(field: Field) -> Match {
    is(field, LOOPBACK.to_ne_bytes())
}

pub(super) fn is_ethernet() -> Match {
    is(Field::MetaOiftype, ETHERNET.to_ne_bytes())
}

/// A foreign DNAT of 127.x must not get out (threat 35).
pub(super) fn to_own_address() -> Match {
    is(Field::FibDaddrType, RTN_LOCAL.to_ne_bytes())
}

/// Any program may send under any IPv6 address (IPV6_FREEBIND, ipv6(7)): threats 72 and 73.
pub(super) fn from_own_address() -> Match {
    is(Field::FibSaddrType, RTN_LOCAL.to_ne_bytes())
}

/// By the link by which the packet came, no route leads to the address.
pub(super) fn is_elsewhere(field: Field) -> Match {
    is(field, 0_u32.to_ne_bytes())
}

pub(super) fn is_reply() -> Match {
    is(Field::CtDirection, [CT_REPLY])
}

pub(super) fn ct_state(mask: u32) -> Match {
    any_of(Field::CtState, mask.to_ne_bytes())
}

pub(super) fn is_kind(field: Field, kind: &str) -> Match {
    is(field, padded(kind))
}

pub(super) fn named(field: Field, pattern: &LinkPattern) -> Match {
    match pattern {
        LinkPattern::Exact(name) => is(field, padded(name)),
        LinkPattern::Prefix(start) => {
            single(field, Test::StartsWith(Value::from_slice(start.as_bytes())))
        }
    }
}

/// A link's name as the kernel compares it: IFNAMSIZ bytes.
pub(super) fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
