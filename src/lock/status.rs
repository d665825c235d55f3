//! What is said of the lock: the kernel's view, held against what the configuration compiles to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::UNLOGGED;
use super::other::OtherGuard;
use super::{Live, without_guard};
use crate::netfilter::{self, Counted, LiveTable, live};
use crate::netlink::Link;
use crate::policy::{self, Policy};
use crate::routing;
use crate::ruleset::expression::{self, Expression};
use crate::ruleset::{self, Table};

/// Of an open machine: something of the lock is left that blocks.
pub const REMAINS: &str =
    "what is left of the lock still blocks: `killswitch lock` locks, `killswitch unlock` opens";

/// What `status` says: the kernel's view, held against what the configuration compiles to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// In one word.
    pub state: State,
    /// Our table is there and awake, whatever it holds.
    pub locked: bool,
    /// It is exactly what the configuration compiles to, and so are the other layers.
    pub intact: bool,
    /// What is weaker than asked.
    pub degraded: Vec<String>,
    /// The tunnel, if one is configured.
    pub tunnel: Option<Tunnel>,
    /// Layer by layer.
    pub layers: Layers,
    /// Per chain and reason.
    pub dropped: BTreeMap<String, BTreeMap<String, Counted>>,
    /// Whether the daemon runs: the kernel's view does not tell, whoever asks the daemon does.
    pub daemon: bool,
    /// What the daemon leaves open for a while, with which all this is judged.
    pub exceptions: Vec<Exception>,
    /// Whether the policy has a routing guard.
    #[serde(skip)]
    pub routing_guard: bool,
}

/// What is open for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exception {
    /// Its number.
    pub id: u32,
    /// One of [`crate::config::EXCEPTION_KINDS`].
    pub kind: String,
    /// As [`policy::Exception`] writes it.
    pub what: String,
    /// Seconds until it ends.
    pub left_s: u64,
}

/// The lock's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Locked, and the tunnel's link is up.
    Connected,
    /// Locked, and the daemon is at work on the tunnel.
    Connecting,
    /// Locked, no tunnel.
    Blocked,
    /// Not locked: everything may leave.
    Open,
    /// Something differs from what the configuration compiles to.
    Damaged,
}

/// The tunnel as the kernel shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tunnel {
    /// Its link's name.
    pub interface: String,
    /// Whether a link of that name and kind is up.
    pub up: bool,
    /// The server in use, if known.
    pub server: Option<String>,
    /// The endpoint in use, if known.
    pub endpoint: Option<String>,
    /// Seconds since the last handshake, if known.
    pub last_handshake_age_s: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Whether a route of ours leads into it; always, where somebody else makes the routes.
    #[serde(skip)]
    pub routed: bool,
}

/// The layers of the lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layers {
    /// Table `inet killswitch` is intact.
    pub table: bool,
    /// Links with an egress guard, also where it is that of another configuration.
    pub egress: Vec<String>,
    /// The routing guard is there and intact; external tunnels have none.
    pub routes: bool,
    /// The table has an owner: nobody else can change it.
    pub owned: bool,
}

impl Status {
    /// What the kernel holds against what it should; `complaint`: why the configuration cannot be
    /// used, in which case the policy is the strictest.
    pub fn of(live: &Live, policy: &Policy, complaint: Option<String>) -> Self {
        let mut degraded: Vec<String> = complaint.into_iter().collect();
        let (locked, complained) = (live.locked(), !degraded.is_empty());
        let table = table_is_intact(live, policy, complained, &mut degraded);
        let egress = guarded_links(live, policy, complained, &mut degraded);
        let routes = routes_are_intact(live, policy, locked, &mut degraded);
        let tunnel = policy.tunnel.as_ref().map(|tunnel| describe_tunnel(live, policy, tunnel));
        let connected = tunnel.as_ref().is_some_and(|tunnel| tunnel.up);
        let intact = locked && table && egress.1 && routes;
        if live.inet.is_none() && (live.egress.is_some() || !live.routing.is_empty()) {
            degraded.push(REMAINS.into());
        }
        let state = match (locked, intact, connected) {
            (false, ..) if live.inet.is_some() => State::Damaged,
            (false, ..) => State::Open,
            (true, false, _) => State::Damaged,
            (true, true, true) => State::Connected,
            (true, true, false) => State::Blocked,
        };
        Status {
            state,
            locked,
            intact,
            degraded,
            tunnel,
            layers: Layers {
                table,
                egress: egress.0,
                routes: routes && policy.routing_guard,
                owned: live.inet.as_ref().is_some_and(|table| table.owner.is_some()),
            },
            dropped: dropped(live),
            daemon: false,
            exceptions: Vec::new(),
            routing_guard: policy.routing_guard,
        }
    }

    /// 0 connected and intact; 10 locked, no tunnel; 20 open; 30 damaged.
    pub fn exit_code(&self) -> u8 {
        match self.state {
            State::Connected => 0,
            State::Connecting | State::Blocked => 10,
            State::Open => 20,
            State::Damaged => 30,
        }
    }
}

/// Without an egress guard the table is right if it leaves internal bridges out.
fn table_is_intact(
    live: &Live,
    policy: &Policy,
    complained: bool,
    degraded: &mut Vec<String>,
) -> bool {
    let Some(table) = &live.inet else { return false };
    if is_as_compiled(table, ruleset::compile(policy), degraded) {
        return true;
    }
    let without_internal = || ruleset::compile(&without_guard(policy));
    if policy.egress_guard && is_as_compiled(table, without_internal(), degraded) {
        degraded.push("allow.internal is left out: it needs the egress guard".into());
        return true;
    }
    if table.equals(&ruleset::compile(&Policy::strictest())) {
        degraded.push(
            "the strictest lock is loaded, not the configured one; run `killswitch reload`".into(),
        );
    } else if table.flags & live::DORMANT != 0 {
        degraded.push("table inet killswitch is dormant; run `killswitch lock`".into());
    } else {
        degraded.push(differs("inet", complained));
    }
    false
}

/// `complained`: the configuration cannot be used, and the strictest lock stands in.
fn differs(family: &str, complained: bool) -> String {
    match complained {
        true => format!(
            "table {family} killswitch is not the strictest lock; mend the file first: \
             `killswitch check`"
        ),
        false => format!(
            "table {family} killswitch is not what the configuration compiles to; \
             `killswitch plan` shows the difference, `killswitch reload` mends it"
        ),
    }
}

/// As compiled, or as compiled for a kernel that cannot log.
fn is_as_compiled(live: &LiveTable, table: Table, degraded: &mut Vec<String>) -> bool {
    if live.equals(&table) {
        return true;
    }
    let unlogged = live.equals(&table.without_log());
    if unlogged {
        say_unlogged(degraded);
    }
    unlogged
}

/// Once, for both tables.
fn say_unlogged(degraded: &mut Vec<String>) {
    if !degraded.iter().any(|it| it == UNLOGGED) {
        degraded.push(UNLOGGED.into());
    }
}

/// The links with a guard, and whether every link that must have one has it.
fn guarded_links(
    live: &Live,
    policy: &Policy,
    complained: bool,
    degraded: &mut Vec<String>,
) -> (Vec<String>, bool) {
    let locked = live.locked();
    if !policy.egress_guard {
        if locked {
            degraded.push("egress guard: off in the configuration".into());
        }
        return (Vec::new(), true);
    }
    let links = netfilter::guarded(policy, &live.links);
    let names = |links: &[Link]| links.iter().map(|link| link.name.clone()).collect();
    let Some(table) = &live.egress else {
        if locked {
            degraded.push("egress guard: there is none".into());
        }
        return (Vec::new(), links.is_empty());
    };
    if is_as_compiled(table, ruleset::guard(policy, None), degraded) {
        return (names(&links), true);
    }
    let (intact, others): (Vec<Link>, Vec<Link>) =
        links.iter().cloned().partition(|link| is_covered(table, policy, link, degraded));
    if others.is_empty() {
        return (names(&links), true);
    }
    let guarded = OtherGuard::of(table).map_or(Vec::new(), |it| it.holding_on(&others));
    if !guarded.is_empty() {
        degraded.push(differs("netdev", complained));
    }
    let (with, without): (Vec<Link>, Vec<Link>) =
        links.into_iter().partition(|link| intact.contains(link) || guarded.contains(link));
    for link in without {
        degraded.push(format!("egress guard: {} has none", link.name));
    }
    (names(&with), false)
}

/// Whether the link has the guard that was compiled for it.
fn is_covered(table: &LiveTable, policy: &Policy, link: &Link, degraded: &mut Vec<String>) -> bool {
    let wanted = ruleset::guard(policy, Some(&netfilter::references(std::slice::from_ref(link))));
    if covers(table, &wanted) {
        return true;
    }
    let unlogged = covers(table, &wanted.without_log());
    if unlogged {
        say_unlogged(degraded);
    }
    unlogged
}

/// Whether the live guard holds these links' chains and all that they jump to.
fn covers(live: &LiveTable, table: &Table) -> bool {
    live.flags & live::DORMANT == 0
        && table.chains.iter().all(|chain| live.has_chain(chain))
        && table.sets.iter().all(|set| live.sets.get(&set.name).is_some_and(|it| it.holds(set)))
}

fn routes_are_intact(
    live: &Live,
    policy: &Policy,
    locked: bool,
    degraded: &mut Vec<String>,
) -> bool {
    let guard = routing::Guard::from_policy(policy);
    let missing = live.routing.missing(&guard);
    let extra = live.routing.extra(&guard);
    if locked && !missing.is_empty() {
        degraded.push(format!("routing guard: missing: {}", missing.join("; ")));
    }
    if locked && !extra.is_empty() {
        degraded.push(format!("routing guard: too much: {}", extra.join("; ")));
    }
    let grouped = routing::grouped_wrongly(&live.links, &guard);
    if locked && !grouped.is_empty() {
        degraded.push(format!(
            "routing guard: in the link group of internal bridges: {}",
            grouped.join(", ")
        ));
    }
    missing.is_empty() && extra.is_empty() && grouped.is_empty()
}

fn describe_tunnel(live: &Live, policy: &Policy, tunnel: &policy::Tunnel) -> Tunnel {
    let link = live.links.iter().find(|link| tunnel.is(&link.name, link.kind.as_deref()));
    Tunnel {
        interface: tunnel.interface.clone(),
        up: link.is_some_and(|link| link.up),
        server: None,
        endpoint: None,
        last_handshake_age_s: None,
        rx_bytes: link.map_or(0, |link| link.rx_bytes),
        tx_bytes: link.map_or(0, |link| link.tx_bytes),
        routed: !policy.routing_guard
            || link.is_some_and(|link| live.routing.leads_into(link.index)),
    }
}

fn dropped(live: &Live) -> BTreeMap<String, BTreeMap<String, Counted>> {
    let mut dropped: BTreeMap<String, BTreeMap<String, Counted>> = BTreeMap::new();
    for table in live.inet.iter().chain(&live.egress) {
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                let Some(counted) = rule.counted.filter(|_| ends_here(&rule.expressions)) else {
                    continue;
                };
                let sum = dropped
                    .entry(name.clone())
                    .or_default()
                    .entry(rule.comment.clone())
                    .or_default();
                sum.packets += counted.packets;
                sum.bytes += counted.bytes;
            }
        }
    }
    dropped
}

/// Whether the packet is dropped or refused: a counted rule may also let it go on.
fn ends_here(expressions: &[Expression]) -> bool {
    matches!(
        expressions.last(),
        Some(Expression::Verdict { code: expression::DROP, .. } | Expression::Reject { .. })
    )
}
