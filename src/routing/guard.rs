use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::{Inbound, LinkPattern, NAME_SERVICE_PORTS, Policy, Protocol, Tunnel};

/// Our routing table: "ks" in ASCII, as the mark.
pub const TABLE: u32 = 0x6b73;

/// The link group of internal bridges.
pub const GROUP: u32 = 0x6b73;

/// Preferences of our rules: a rule in this range with `protocol kernel` is ours.
pub const PREFERENCES: RangeInclusive<u32> = 27500..=27599;

/// Metric of the default route that refuses: the last of all.
pub const LAST_METRIC: u32 = u32::MAX;

/// What sockets (a raw one aside) and the kernel's tunnels send: ICMP, IPIP, TCP, UDP, DCCP, SIT,
/// GRE, ESP, AH, L2TP, SCTP, UDP-Lite.
const TRANSPORTS: [u8; 12] = [1, 4, 6, 17, 33, 41, 47, 50, 51, 115, 132, 136];

/// Where each kind of rule stands. One kind may hold many rules: they do the same, so their order
/// does not matter.
mod preference {
    pub const MARKED: u32 = 27500;
    pub const MARKED_UNREACHABLE: u32 = 27501;
    pub const INTERNAL: u32 = 27505;
    pub const NAMED_DNS: u32 = 27510;
    pub const DNS: u32 = 27520;
    pub const NTP: u32 = 27530;
    pub const INBOUND: u32 = 27540;
    pub const LAN: u32 = 27550;
    pub const DHCP: u32 = 27560;
    pub const TRANSPORT: u32 = 27570;
    pub const KERNEL: u32 = 27580;
    pub const TABLE: u32 = 27590;
    pub const UNREACHABLE: u32 = 27599;
}

/// IPv4 or IPv6: each has rules and routes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a rule does with a packet that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Table main, any route.
    Main,
    /// Table main, but no route that is wider than any private network.
    MainNear,
    /// As [`Action::MainNear`], and no route through a link of the default group.
    MainInternal,
    /// Our table; the next rule if it has no route.
    Table,
    /// The rule at this preference.
    Goto(u32),
    /// An error at once.
    Unreachable,
    /// Nothing that we ever ask for: only read from the kernel.
    Other,
}

impl Action {
    /// Whether more may leave with the rule than without it.
    pub(super) fn opens(self) -> bool {
        matches!(self, Action::Main | Action::MainNear | Action::MainInternal | Action::Other)
    }
}

/// A policy rule: for packets that match every selector present.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Rules are asked in this order.
    pub preference: u32,
    /// For packets of this family.
    pub family: Family,
    /// Firewall mark, exact.
    pub mark: Option<u32>,
    /// Destination; never of length zero.
    pub to: Option<IpNet>,
    /// Only for packets of this machine, and for what the kernel asks on its own behalf.
    pub local: bool,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port, of any transport protocol unless `protocol` names one.
    pub destination_port: Option<u16>,
    /// What then.
    pub action: Action,
}

impl Rule {
    pub(super) fn new(family: Family, preference: u32, action: Action) -> Self {
        Rule {
            preference,
            family,
            mark: None,
            to: None,
            local: false,
            protocol: None,
            source_port: None,
            destination_port: None,
            action,
        }
    }

    /// A rule for one destination. One for every destination stands behind the others: the kernel
    /// takes a missing selector in a deletion for "any", so it must share its preference with none.
    fn to(net: IpNet, preference: u32, action: Action) -> Self {
        let net = net.trunc();
        if net.prefix_len() == 0 {
            Rule::new(Family::of(net.addr()), preference + 1, action)
        } else {
            Rule { to: Some(net), ..Rule::new(Family::of(net.addr()), preference, action) }
        }
    }
}

/// What a route of our table does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// An error at once.
    Unreachable,
    /// Through the link of this index, with `protocol kernel` and no gateway: the tunnel.
    Link(u32),
    /// Nothing that we ever ask for: only read from the kernel.
    Other,
}

/// A route of our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Lower ones win.
    pub metric: u32,
    /// What then.
    pub kind: RouteKind,
}

/// The second layer: what keeps the promise alone when the nft table is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Policy rules, in the kernel's order.
    pub rules: BTreeSet<Rule>,
    /// Routes of our table. The tunnel's come and go and are not among them.
    pub routes: BTreeSet<Route>,
    /// Which may have routes in our table.
    pub tunnel: Option<Tunnel>,
    /// Bridges that go into our link group.
    pub internal: BTreeSet<LinkPattern>,
}

impl Guard {
    /// The guard that a policy asks for; empty where something else brings the tunnel up, which
    /// then also decides on routes.
    pub fn from_policy(policy: &Policy) -> Self {
        if !policy.routing_guard {
            return Guard::default();
        }
        let mut rules = BTreeSet::new();
        for family in Family::BOTH {
            // Mark zero would be every packet.
            if policy.tunnel.is_some() && policy.mark != 0 {
                rules.extend(marked(family, policy.mark));
            }
            if !policy.internal.is_empty() {
                rules.insert(Rule::new(family, preference::INTERNAL, Action::MainInternal));
            }
            rules.extend(NAME_SERVICE_PORTS.map(|port| Rule {
                destination_port: Some(port),
                ..Rule::new(family, preference::DNS, Action::Goto(preference::TABLE))
            }));
            rules.insert(Rule::new(family, preference::TABLE, Action::Table));
            rules.insert(Rule::new(family, preference::UNREACHABLE, Action::Unreachable));
        }
        rules.extend(kernel_questions());
        rules.extend(
            policy
                .lan_dns
                .iter()
                .map(|&address| Rule::to(address.into(), preference::NAMED_DNS, Action::MainNear)),
        );
        rules.extend(policy.ntp.iter().map(|&address| ntp(address)));
        rules.extend(policy.inbound.iter().map(inbound));
        rules
            .extend(policy.lan.iter().map(|&net| Rule::to(net, preference::LAN, Action::MainNear)));
        if policy.dhcp {
            rules.insert(dhcp());
        }
        Guard {
            rules,
            routes: Family::BOTH.map(unreachable_default).into(),
            tunnel: policy.tunnel.clone(),
            internal: policy.internal.clone(),
        }
    }
}

/// The tunnel's outer packets take the physical route or none: with table main empty they must not
/// fall through to the tunnel itself and go round in circles.
fn marked(family: Family, mark: u32) -> [Rule; 2] {
    [
        Rule { mark: Some(mark), ..Rule::new(family, preference::MARKED, Action::Main) },
        Rule {
            mark: Some(mark),
            ..Rule::new(family, preference::MARKED_UNREACHABLE, Action::Unreachable)
        },
    ]
}

fn ntp(address: IpAddr) -> Rule {
    Rule {
        protocol: Some(UDP),
        destination_port: Some(123),
        ..Rule::to(address.into(), preference::NTP, Action::Main)
    }
}

/// Replies of a service. A name service that is allowed by its port stands before the ban on DNS:
/// mDNS answers go from 5353 to 5353.
fn inbound(service: &Inbound) -> Rule {
    let preference = if NAME_SERVICE_PORTS.contains(&service.port) {
        preference::NAMED_DNS
    } else {
        preference::INBOUND
    };
    Rule {
        protocol: Some(service.protocol.number()),
        source_port: Some(service.port),
        ..Rule::to(service.from, preference, Action::Main)
    }
}

/// Unicast renewals; the rest of DHCPv4 is broadcast, for which a bound socket asks no rule. A
/// server behind the gateway is reached by rebinding through the relay (RFC 2131, 4.4.5).
///
/// DHCPv6 and neighbour discovery need nothing: they go to multicast groups, whose routes are in
/// table local, or are the kernel's own, which asks no rule for them.
fn dhcp() -> Rule {
    Rule {
        protocol: Some(UDP),
        source_port: Some(68),
        destination_port: Some(67),
        ..Rule::new(Family::V4, preference::DHCP, Action::MainNear)
    }
}

/// The kernel itself asks the rules whether the gateway of a new IPv4 route is on a link
/// (`fib_check_nh_v4_gw`), and, with rp_filter on, whether whoever sends an ARP request is. Without
/// an answer nobody could add a default route, and ours would be the machine that no router finds.
///
/// These questions name no protocol, so what has one goes on to our table first. A raw socket may
/// send yet another protocol, but who may open one may also write frames, which no rule sees.
fn kernel_questions() -> impl Iterator<Item = Rule> {
    let transports = TRANSPORTS.map(|number| Rule {
        protocol: Some(number),
        ..Rule::new(Family::V4, preference::TRANSPORT, Action::Goto(preference::TABLE))
    });
    let rest = Rule { local: true, ..Rule::new(Family::V4, preference::KERNEL, Action::MainNear) };
    transports.into_iter().chain([rest])
}

const UDP: u8 = Protocol::Udp.number();

fn unreachable_default(family: Family) -> Route {
    Route { destination: family.everything(), metric: LAST_METRIC, kind: RouteKind::Unreachable }
}

impl Family {
    /// Both, in order.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The default destination.
    pub fn everything(self) -> IpNet {
        match self {
            Family::V4 => Ipv4Net::default().into(),
            Family::V6 => Ipv6Net::default().into(),
        }
    }

    /// Routes of this length or less are not near: no private network is wider than 10.0.0.0/8
    /// (RFC 1918) or fc00::/7 (RFC 4193). Zero would let a rogue 0.0.0.0/1 through (threat 45).
    pub(super) fn too_wide(self) -> u32 {
        match self {
            Family::V4 => 7,
            Family::V6 => 6,
        }
    }
}

/// Whether the rules that take no wide route of table main take one to this destination.
pub fn is_near(destination: IpNet) -> bool {
    u32::from(destination.prefix_len()) > Family::of(destination.addr()).too_wide()
}

/// In the words of `ip rule`.
impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(out, "-{family} rule {}: from all", self.preference)?;
        if let Some(to) = self.to {
            write!(out, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(out, " fwmark {mark:#x}")?;
        }
        if self.local {
            write!(out, " iif lo")?;
        }
        if let Some(protocol) = self.protocol {
            write!(out, " ipproto {protocol}")?;
        }
        if let Some(port) = self.source_port {
            write!(out, " sport {port}")?;
        }
        if let Some(port) = self.destination_port {
            write!(out, " dport {port}")?;
        }
        let near = self.family.too_wide();
        match self.action {
            Action::Main => write!(out, " lookup main"),
            Action::MainNear => write!(out, " lookup main suppress_prefixlength {near}"),
            Action::MainInternal => {
                write!(out, " lookup main suppress_prefixlength {near} suppress_ifgroup default")
            }
            Action::Table => write!(out, " lookup {TABLE}"),
            Action::Goto(preference) => write!(out, " goto {preference}"),
            Action::Unreachable => write!(out, " unreachable"),
            Action::Other => write!(out, " (not as we wrote it)"),
        }
    }
}

/// In the words of `ip route`.
impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unreachable => write!(out, "route unreachable {}", self.destination)?,
            RouteKind::Link(index) => write!(out, "route {} dev #{index}", self.destination)?,
            RouteKind::Other => write!(out, "foreign route {}", self.destination)?,
        }
        write!(out, " metric {} table {TABLE}", self.metric)
    }
}

/// What is wanted but not there, and what is there but not wanted, the latter with what the caller
/// keeps beside each (two equal ones: the second is not wanted).
pub(super) fn compare<'w, 'l, T: Ord, K>(
    wanted: &'w BTreeSet<T>,
    live: &'l [(T, K)],
) -> (Vec<&'w T>, Vec<&'l (T, K)>) {
    let mut missing: BTreeSet<&T> = wanted.iter().collect();
    let extra = live.iter().filter(|(item, _)| !missing.remove(item)).collect();
    (missing.into_iter().collect(), extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            lan: vec!["192.168.1.0/24".parse().unwrap()],
            lan_dns: ["192.168.1.1".parse().unwrap()].into(),
            ntp: ["2001:db8::123".parse().unwrap()].into(),
            inbound: [Inbound {
                protocol: Protocol::Tcp,
                port: 22,
                from: "192.168.1.7/24".parse().unwrap(),
            }]
            .into(),
            internal: [LinkPattern::Exact("docker0".into())].into(),
            dhcp: true,
            tunnel: Some(crate::policy::Tunnel {
                interface: "wg0".into(),
                kinds: ["wireguard"].into(),
                addresses: BTreeSet::new(),
            }),
            ..Policy::strictest()
        }
    }

    fn listing(guard: &Guard, family: Family) -> Vec<String> {
        let rules = guard.rules.iter();
        let rules = rules.filter(|rule| rule.family == family && rule.preference != 27570);
        rules.map(|rule| rule.to_string()[8..].to_owned()).collect()
    }

    #[test]
    fn every_allowance_has_its_rule() {
        let guard = Guard::from_policy(&policy());
        assert_eq!(
            listing(&guard, Family::V4),
            [
                "27500: from all fwmark 0x6b73 lookup main",
                "27501: from all fwmark 0x6b73 unreachable",
                "27505: from all lookup main suppress_prefixlength 7 suppress_ifgroup default",
                "27510: from all to 192.168.1.1/32 lookup main suppress_prefixlength 7",
                "27520: from all dport 53 goto 27590",
                "27520: from all dport 853 goto 27590",
                "27520: from all dport 5353 goto 27590",
                "27520: from all dport 5355 goto 27590",
                "27540: from all to 192.168.1.0/24 ipproto 6 sport 22 lookup main",
                "27550: from all to 192.168.1.0/24 lookup main suppress_prefixlength 7",
                "27560: from all ipproto 17 sport 68 dport 67 lookup main suppress_prefixlength 7",
                "27580: from all iif lo lookup main suppress_prefixlength 7",
                "27590: from all lookup 27507",
                "27599: from all unreachable",
            ]
        );
        assert!(listing(&guard, Family::V6).contains(
            &"27530: from all to 2001:db8::123/128 ipproto 17 dport 123 lookup main".into()
        ));
    }

    #[test]
    fn the_strictest_lock_answers_the_kernel_only() {
        let guard = Guard::from_policy(&Policy::strictest());
        let opening: Vec<&Rule> = guard.rules.iter().filter(|rule| rule.action.opens()).collect();
        assert_eq!(opening.iter().map(|rule| rule.preference).collect::<Vec<_>>(), [27580]);
        assert_eq!(guard.routes.len(), 2);
        assert_eq!(guard.tunnel, None);
    }

    #[test]
    fn mark_zero_opens_nothing() {
        let guard = Guard::from_policy(&Policy { mark: 0, ..policy() });
        assert!(guard.rules.iter().all(|rule| rule.mark.is_none()));
    }

    #[test]
    fn an_external_tunnel_has_no_guard() {
        let policy = Policy { routing_guard: false, ..policy() };
        assert_eq!(Guard::from_policy(&policy), Guard::default());
    }

    #[test]
    fn a_rule_for_every_destination_stands_alone() {
        let anywhere =
            Inbound { protocol: Protocol::Tcp, port: 22, from: "0.0.0.0/0".parse().unwrap() };
        let rule = inbound(&anywhere);
        assert_eq!((rule.to, rule.preference), (None, preference::INBOUND + 1));
    }

    #[test]
    fn a_second_copy_is_extra() {
        let live = [(1, 'a'), (1, 'b'), (3, 'c')];
        let wanted = BTreeSet::from([1, 2]);
        assert_eq!(compare(&wanted, &live), (vec![&2], vec![&(1, 'b'), &(3, 'c')]));
    }

    #[test]
    fn preferences_are_in_our_range() {
        let guard = Guard::from_policy(&policy());
        assert!(guard.rules.iter().all(|rule| PREFERENCES.contains(&rule.preference)));
    }
}
