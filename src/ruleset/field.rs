//! What a rule can look at: how the kernel loads it, how nft writes it, how long it is.

/// A property of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are nft's own")]
pub enum Field {
    MetaProtocol,
    MetaNfproto,
    MetaL4proto,
    MetaMark,
    MetaIifname,
    MetaOifname,
    MetaIifkind,
    MetaOifkind,
    MetaIif,
    MetaOif,
    MetaOiftype,
    CtState,
    CtStatus,
    CtDirection,
    CtProtocol,
    CtOriginalIpDaddr,
    CtOriginalIp6Daddr,
    CtOriginalProtoDst,
    FibSaddrType,
    FibDaddrType,
    /// Whether the way to the source is the link by which the packet came.
    FibSaddrIif,
    /// Whether the way to the destination is the link by which the packet came.
    FibDaddrIif,
    IpSaddr,
    IpDaddr,
    IpTtl,
    /// Flags and fragment offset (RFC 791): the low thirteen bits are the offset.
    IpFragOff,
    Ip6Nexthdr,
    /// The offset of a fragment header that stands first (RFC 8200, 4.5): the high thirteen bits.
    Ip6FragOff,
    Ip6Saddr,
    Ip6Daddr,
    Ip6Hoplimit,
    UdpSport,
    UdpDport,
    ThSport,
    ThDport,
    IcmpType,
    Icmpv6Type,
    /// Of which protocol ARP's addresses are, as an EtherType.
    ArpProtocol,
    ArpSaddrIp,
    /// The EtherType that is on the wire: `meta protocol` is what a packet socket says it is.
    EtherType,
    /// The first byte of a VLAN tag's priority and number.
    VlanPriority,
    /// The EtherType behind a VLAN tag.
    VlanType,
    /// The first byte of the network header, with IP's version.
    IpVersion,
    /// WireGuard's message type: the first byte of a datagram.
    WireguardType,
    /// WireGuard's reserved bytes: the three that follow.
    WireguardReserved,
    /// BOOTP's `op`: 1 request, 2 reply (RFC 2131, 2).
    BootpOp,
    /// DHCP's magic cookie (RFC 2131, 3).
    BootpCookie,
}

/// How the kernel puts a field into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// `meta`, by NFT_META_* key.
    Meta(u32),
    /// `ct`, by NFT_CT_* key; direction 0 is the original one.
    Ct(u32, Option<u8>),
    /// `fib`, by NFT_FIB_RESULT_* and NFTA_FIB_F_*.
    Fib(u32, u32),
    /// Bytes of the packet: NFT_PAYLOAD_* base, offset, length.
    Payload(u32, u32, u32),
}

/// What kind of value a field holds: its length, nft's type number and its way of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ValueKind {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// An IP protocol number.
    Protocol,
    /// A port.
    Port,
    /// An EtherType.
    Ethertype,
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    Nfproto,
    /// A firewall mark, in host byte order.
    Mark,
    /// A link's name or kind, 16 bytes.
    Name,
    /// A link's index, in host byte order.
    Link,
    /// ARPHRD_*, in host byte order.
    Linktype,
    /// Conntrack's state, a bit mask in host byte order.
    CtState,
    /// Conntrack's status, a bit mask in host byte order.
    CtStatus,
    /// 0 original, 1 reply.
    CtDirection,
    /// RTN_*, in host byte order.
    Addrtype,
    /// 0: there is none.
    Presence,
    /// A number of this many bytes in network byte order.
    Number(u32),
}

const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

impl Field {
    /// Every field: for tests and for reading rules back.
    pub const ALL: [Field; 47] = [
        Field::MetaProtocol,
        Field::MetaNfproto,
        Field::MetaL4proto,
        Field::MetaMark,
        Field::MetaIifname,
        Field::MetaOifname,
        Field::MetaIifkind,
        Field::MetaOifkind,
        Field::MetaIif,
        Field::MetaOif,
        Field::MetaOiftype,
        Field::CtState,
        Field::CtStatus,
        Field::CtDirection,
        Field::CtProtocol,
        Field::CtOriginalIpDaddr,
        Field::CtOriginalIp6Daddr,
        Field::CtOriginalProtoDst,
        Field::FibSaddrType,
        Field::FibDaddrType,
        Field::FibSaddrIif,
        Field::FibDaddrIif,
        Field::IpSaddr,
        Field::IpDaddr,
        Field::IpTtl,
        Field::IpFragOff,
        Field::Ip6Nexthdr,
        Field::Ip6FragOff,
        Field::Ip6Saddr,
        Field::Ip6Daddr,
        Field::Ip6Hoplimit,
        Field::UdpSport,
        Field::UdpDport,
        Field::ThSport,
        Field::ThDport,
        Field::IcmpType,
        Field::Icmpv6Type,
        Field::ArpProtocol,
        Field::ArpSaddrIp,
        Field::EtherType,
        Field::VlanPriority,
        Field::VlanType,
        Field::IpVersion,
        Field::WireguardType,
        Field::WireguardReserved,
        Field::BootpOp,
        Field::BootpCookie,
    ];

    /// (nft's words, how it is loaded, what it holds), by include/uapi/linux/netfilter/nf_tables.h.
    const fn spec(self) -> (&'static str, Load, ValueKind) {
        use Load::{Ct, Fib, Meta, Payload};
        use ValueKind as K;
        match self {
            Field::MetaProtocol => ("meta protocol", Meta(1), K::Ethertype),
            Field::MetaMark => ("meta mark", Meta(3), K::Mark),
            Field::MetaIifname => ("iifname", Meta(6), K::Name),
            Field::MetaOifname => ("oifname", Meta(7), K::Name),
            Field::MetaIif => ("iif", Meta(4), K::Link),
            Field::MetaOif => ("oif", Meta(5), K::Link),
            Field::MetaOiftype => ("oiftype", Meta(9), K::Linktype),
            Field::MetaNfproto => ("meta nfproto", Meta(15), K::Nfproto),
            Field::MetaL4proto => ("meta l4proto", Meta(16), K::Protocol),
            Field::MetaIifkind => ("meta iifkind", Meta(26), K::Name),
            Field::MetaOifkind => ("meta oifkind", Meta(27), K::Name),
            Field::CtState => ("ct state", Ct(0, None), K::CtState),
            Field::CtDirection => ("ct direction", Ct(1, None), K::CtDirection),
            Field::CtStatus => ("ct status", Ct(2, None), K::CtStatus),
            Field::CtProtocol => ("ct protocol", Ct(10, None), K::Protocol),
            Field::CtOriginalProtoDst => ("ct original proto-dst", Ct(12, Some(0)), K::Port),
            Field::CtOriginalIpDaddr => ("ct original ip daddr", Ct(20, Some(0)), K::Ipv4),
            Field::CtOriginalIp6Daddr => ("ct original ip6 daddr", Ct(22, Some(0)), K::Ipv6),
            Field::FibSaddrType => ("fib saddr type", Fib(3, 1), K::Addrtype),
            Field::FibDaddrType => ("fib daddr type", Fib(3, 2), K::Addrtype),
            Field::FibSaddrIif => ("fib saddr . iif oif", Fib(1, 41), K::Presence),
            Field::FibDaddrIif => ("fib daddr . iif oif", Fib(1, 42), K::Presence),
            Field::IpTtl => ("ip ttl", Payload(NETWORK, 8, 1), K::Number(1)),
            Field::IpFragOff => ("ip frag-off", Payload(NETWORK, 6, 2), K::Number(2)),
            Field::Ip6Nexthdr => ("ip6 nexthdr", Payload(NETWORK, 6, 1), K::Protocol),
            Field::Ip6FragOff => ("@nh,336,16", Payload(NETWORK, 42, 2), K::Number(2)),
            Field::IpSaddr => ("ip saddr", Payload(NETWORK, 12, 4), K::Ipv4),
            Field::IpDaddr => ("ip daddr", Payload(NETWORK, 16, 4), K::Ipv4),
            Field::Ip6Hoplimit => ("ip6 hoplimit", Payload(NETWORK, 7, 1), K::Number(1)),
            Field::Ip6Saddr => ("ip6 saddr", Payload(NETWORK, 8, 16), K::Ipv6),
            Field::Ip6Daddr => ("ip6 daddr", Payload(NETWORK, 24, 16), K::Ipv6),
            Field::ArpProtocol => ("@nh,16,16", Payload(NETWORK, 2, 2), K::Number(2)),
            Field::ArpSaddrIp => ("arp saddr ip", Payload(NETWORK, 14, 4), K::Ipv4),
            Field::EtherType => ("@ll,96,16", Payload(LINK, 12, 2), K::Number(2)),
            Field::VlanPriority => ("@ll,112,8", Payload(LINK, 14, 1), K::Number(1)),
            Field::VlanType => ("@ll,128,16", Payload(LINK, 16, 2), K::Number(2)),
            Field::IpVersion => ("@nh,0,8", Payload(NETWORK, 0, 1), K::Number(1)),
            Field::UdpSport => ("udp sport", Payload(TRANSPORT, 0, 2), K::Port),
            Field::UdpDport => ("udp dport", Payload(TRANSPORT, 2, 2), K::Port),
            Field::ThSport => ("th sport", Payload(TRANSPORT, 0, 2), K::Port),
            Field::ThDport => ("th dport", Payload(TRANSPORT, 2, 2), K::Port),
            Field::IcmpType => ("icmp type", Payload(TRANSPORT, 0, 1), K::Number(1)),
            Field::Icmpv6Type => ("icmpv6 type", Payload(TRANSPORT, 0, 1), K::Number(1)),
            Field::WireguardType => ("@th,64,8", Payload(TRANSPORT, 8, 1), K::Number(1)),
            Field::WireguardReserved => ("@th,72,24", Payload(TRANSPORT, 9, 3), K::Number(3)),
            Field::BootpOp => ("@th,64,8", Payload(TRANSPORT, 8, 1), K::Number(1)),
            Field::BootpCookie => ("@th,1952,32", Payload(TRANSPORT, 244, 4), K::Number(4)),
        }
    }

    /// As nft writes it.
    pub const fn name(self) -> &'static str {
        self.spec().0
    }

    /// How the kernel loads it.
    pub const fn load(self) -> Load {
        self.spec().1
    }

    /// What it holds.
    pub const fn kind(self) -> ValueKind {
        self.spec().2
    }
}

impl ValueKind {
    /// Length in bytes.
    pub const fn length(self) -> u32 {
        match self {
            ValueKind::Protocol | ValueKind::Nfproto | ValueKind::CtDirection => 1,
            ValueKind::Port | ValueKind::Ethertype | ValueKind::Linktype => 2,
            ValueKind::Ipv4
            | ValueKind::Link
            | ValueKind::Mark
            | ValueKind::CtState
            | ValueKind::CtStatus
            | ValueKind::Addrtype
            | ValueKind::Presence => 4,
            ValueKind::Ipv6 | ValueKind::Name => 16,
            ValueKind::Number(length) => length,
        }
    }

    /// nft's number for it as the type of a set's key (nftables, include/datatype.h: these numbers
    /// are part of its interface); zero where no set of ours has it.
    pub const fn set_type(self) -> u32 {
        match self {
            ValueKind::Ipv4 => 7,
            ValueKind::Ipv6 => 8,
            ValueKind::Protocol => 12,
            ValueKind::Port => 13,
            _ => 0,
        }
    }

    /// nft's name for it as the type of a set's key.
    pub const fn set_type_name(self) -> &'static str {
        match self {
            ValueKind::Ipv4 => "ipv4_addr",
            ValueKind::Ipv6 => "ipv6_addr",
            ValueKind::Protocol => "inet_proto",
            ValueKind::Port => "inet_service",
            _ => "integer",
        }
    }

    /// The kind with that number.
    pub fn from_set_type(number: u32) -> Option<Self> {
        [ValueKind::Ipv4, ValueKind::Ipv6, ValueKind::Protocol, ValueKind::Port]
            .into_iter()
            .find(|kind| kind.set_type() == number)
    }
}
