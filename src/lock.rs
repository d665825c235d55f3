//! The whole lock: both nftables tables and the routing guard, applied, removed and read back.

mod keeper;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};

use serde::Serialize;

use crate::netfilter::{self, Applied, Counted, LiveTable, live};
use crate::netlink::{self, Family as NetlinkFamily, Link, Socket};
use crate::policy::Policy;
use crate::routing;
use crate::ruleset::expression::{self, Expression};
use crate::ruleset::{self, Family, Table};

pub use keeper::{Keeper, parked};

/// What [`lock`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether anything differed from what was asked.
    pub changed: bool,
    /// What is weaker than asked, and why.
    pub degraded: Vec<String>,
    /// Every table is owned by the [`Keeper`] that did this: nobody else can change it.
    pub owned: bool,
}

/// Why the lock could not be applied or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The nftables tables.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// The routing guard.
    #[error("routing guard: {0}")]
    Routing(#[from] routing::Error),
    /// nf_tables is missing; whether the routing guard holds alone is said.
    #[error("{netfilter}; {routing}")]
    RoutingOnly {
        /// Why there is no table.
        netfilter: netfilter::Error,
        /// What became of the routing guard.
        routing: String,
    },
}

/// Applies the whole lock. What is there already stays untouched; what differs is replaced in
/// place, so at no moment more may leave than before or after.
///
/// # Errors
/// The `inet` table could not be applied: the old one is untouched. The other layers' failures are
/// not errors but reasons why the lock is degraded.
pub fn lock(policy: &Policy) -> Result<Outcome, Error> {
    let _turn = wait_for_turn(PATIENCE);
    let route = Socket::open(NetlinkFamily::Route);
    let tables = Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from).and_then(
        |netfilter| {
            let mut put = |table: &Table| netfilter::apply(&netfilter, table);
            lock_tables(&netfilter, route.as_ref(), policy, &mut put)
        },
    );
    // Without nf_tables the routing guard is all there is.
    match tables {
        Err(error) if !matches!(error, netfilter::Error::Missing(_)) => Err(error.into()),
        tables => with_routing(tables, policy, routing::apply),
    }
}

/// Adds the routing guard to what became of the tables.
fn with_routing(
    tables: Result<Outcome, netfilter::Error>,
    policy: &Policy,
    apply: impl FnOnce(&routing::Guard) -> Result<routing::Report, routing::Error>,
) -> Result<Outcome, Error> {
    let routing = apply(&routing::Guard::from_policy(policy));
    match tables {
        Ok(mut outcome) => {
            match routing {
                Ok(report) => {
                    outcome.changed |= report.added + report.removed > 0;
                    outcome.degraded.extend(report.degraded);
                }
                Err(error) => outcome.degraded.push(format!("routing guard: {error}")),
            }
            Ok(outcome)
        }
        Err(netfilter @ netfilter::Error::Missing(_)) => {
            let routing = match routing {
                Ok(_) if !policy.routing_guard => {
                    "and an external tunnel has no routing guard: NOTHING holds".to_owned()
                }
                Ok(_) => "only the routing guard holds".to_owned(),
                Err(error) => format!("the routing guard failed too: {error}"),
            };
            Err(Error::RoutingOnly { netfilter, routing })
        }
        Err(error) => Err(error.into()),
    }
}

/// How long a command waits for another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lock is three transactions, and a table has one owner: of two commands at the same time the
/// later waits. Only for a while: a program that hangs must not keep an administrator from locking.
fn wait_for_turn(patience: Duration) -> Option<Flock<File>> {
    const PAUSE: Duration = Duration::from_millis(10);
    let begin = Instant::now();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open("/run/killswitch.lock")
        .ok()?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err(_) if begin.elapsed() > patience => return None,
            Err((file, _)) => file,
        };
        std::thread::sleep(PAUSE);
    }
}

/// `put` makes one table what was compiled.
fn lock_tables(
    netfilter: &Socket,
    route: Result<&Socket, &io::Error>,
    policy: &Policy,
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
) -> Result<Outcome, netfilter::Error> {
    let mut outcome = Outcome::default();
    // Internal bridges are safe only behind an egress guard. On a first lock it follows at once;
    // later, its absence shows that this kernel has none.
    let exists = |family| netfilter::exists(netfilter, family);
    let guarded = policy.egress_guard && (!exists(Family::Inet)? || exists(Family::Netdev)?);
    let wanted = if guarded { policy.clone() } else { without_guard(policy) };
    outcome.changed |= put(&ruleset::compile(&wanted))? == Applied::Changed;
    if !policy.egress_guard {
        outcome.changed |= netfilter::remove(netfilter, Family::Netdev)? == Applied::Changed;
        return Ok(outcome);
    }
    let holds = match lock_links(route, policy, put) {
        Ok(guard) if guard.open.is_empty() => {
            outcome.changed |= guard.changed;
            true
        }
        Ok(guard) => {
            outcome.changed |= guard.changed;
            let open = guard.open.join(", ");
            outcome.degraded.push(format!("egress guard: a probe got through on {open}"));
            false
        }
        Err(error) => {
            outcome.degraded.push(format!("egress guard: {error}"));
            false
        }
    };
    if holds != guarded {
        let wanted = if holds { policy.clone() } else { without_guard(policy) };
        outcome.changed |= put(&ruleset::compile(&wanted))? == Applied::Changed;
    }
    if !holds && !policy.internal.is_empty() {
        outcome.degraded.push("allow.internal is left out: it needs the egress guard".into());
    }
    Ok(outcome)
}

fn lock_links(
    route: Result<&Socket, &io::Error>,
    policy: &Policy,
    put: &mut dyn FnMut(&Table) -> Result<Applied, netfilter::Error>,
) -> Result<netfilter::Guard, netfilter::Error> {
    match route {
        Ok(route) => netfilter::apply_guard_by(put, route, policy),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string()).into()),
    }
}

fn without_guard(policy: &Policy) -> Policy {
    Policy { egress_guard: false, ..policy.clone() }
}

/// Opens everything: both tables and the routing guard go. Whether there was anything.
///
/// # Errors
/// If the `inet` table cannot be removed, nothing has changed.
pub fn unlock() -> Result<bool, Error> {
    let _turn = wait_for_turn(PATIENCE);
    let mut any = false;
    match Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from) {
        Ok(netfilter) => any |= remove_tables(&netfilter)?,
        // No nf_tables, no tables: but the routing guard may be there.
        Err(netfilter::Error::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    any |= routing::remove()? > 0;
    Ok(any)
}

fn remove_tables(netfilter: &Socket) -> Result<bool, netfilter::Error> {
    let mut any = false;
    for family in [Family::Inet, Family::Netdev] {
        any |= netfilter::remove(netfilter, family)? == Applied::Changed;
    }
    Ok(any)
}

/// What the kernel holds of the lock at one moment.
#[derive(Debug, Default)]
pub struct Live {
    /// The table that must hold.
    pub inet: Option<LiveTable>,
    /// The egress guard.
    pub egress: Option<LiveTable>,
    /// The routing guard.
    pub routing: routing::Live,
    /// Every link.
    pub links: Vec<Link>,
}

impl Live {
    /// Whether our table is there and awake, whatever it holds.
    pub fn locked(&self) -> bool {
        self.inet.as_ref().is_some_and(|table| table.flags & live::DORMANT == 0)
    }
}

/// Reads it.
///
/// # Errors
/// [`Error`]; nobody without CAP_NET_ADMIN may read the tables.
pub fn read() -> Result<Live, Error> {
    let (inet, egress) = read_tables()?;
    let route = Socket::open(NetlinkFamily::Route).map_err(netfilter::Error::from)?;
    let links = netlink::links(&route).map_err(netfilter::Error::from)?;
    Ok(Live { inet, egress, routing: routing::read()?, links })
}

/// Whether the caller may change the lock.
///
/// # Errors
/// [`Error`], if not.
pub fn permitted() -> Result<(), Error> {
    let netfilter = Socket::open(NetlinkFamily::Netfilter).map_err(netfilter::Error::from)?;
    live::generation(&netfilter).map_err(netfilter::Error::from)?;
    Ok(())
}

type Tables = (Option<LiveTable>, Option<LiveTable>);

fn read_tables() -> Result<Tables, netfilter::Error> {
    match Socket::open(NetlinkFamily::Netfilter).map_err(Into::into) {
        Ok(socket) => read_with(&socket),
        Err(netfilter::Error::Missing(_)) => Ok((None, None)),
        Err(error) => Err(error),
    }
}

fn read_with(netfilter: &Socket) -> Result<Tables, netfilter::Error> {
    /// Another program's change interrupts a reading; endless change is that program's fault.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        let read = |family| live::read(netfilter, family);
        match read(Family::Inet).and_then(|inet| Ok((inet, read(Family::Netdev)?))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return Ok(other?),
        }
    }
    Err(netfilter::Error::Busy(TRIES))
}

/// What `status` says: the kernel's view, held against what the configuration compiles to.
#[derive(Debug, Clone, Serialize)]
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
    /// Whether the daemon runs.
    pub daemon: bool,
    /// Whether the policy has a routing guard.
    #[serde(skip)]
    pub routing_guard: bool,
}

/// The lock's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
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
}

/// The layers of the lock.
#[derive(Debug, Clone, Serialize)]
pub struct Layers {
    /// Table `inet killswitch` is intact.
    pub table: bool,
    /// Links with an egress guard.
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
        let locked = live.locked();
        let table = table_is_intact(live, policy, &mut degraded);
        let egress = guarded_links(live, policy, locked, &mut degraded);
        let routes = routes_are_intact(live, policy, locked, &mut degraded);
        let tunnel = policy.tunnel.as_ref().map(|tunnel| describe_tunnel(live, tunnel));
        let connected = tunnel.as_ref().is_some_and(|tunnel| tunnel.up);
        let intact = locked && table && egress.1 && routes;
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
            daemon: crate::daemon::client::runs(),
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
fn table_is_intact(live: &Live, policy: &Policy, degraded: &mut Vec<String>) -> bool {
    let Some(table) = &live.inet else { return false };
    if table.equals(&ruleset::compile(policy)) {
        return true;
    }
    if policy.egress_guard && table.equals(&ruleset::compile(&without_guard(policy))) {
        degraded.push("allow.internal is left out: it needs the egress guard".into());
        return true;
    }
    if table.equals(&ruleset::compile(&Policy::strictest())) {
        degraded.push(
            "the strictest lock is loaded, not the configured one; run `killswitch reload`".into(),
        );
    } else if table.flags & live::DORMANT != 0 {
        degraded.push("table inet killswitch is dormant; run `killswitch lock`".into());
    } else if !degraded.is_empty() {
        degraded.push(
            "table inet killswitch is not the strictest lock; mend the file first: \
             `killswitch check`"
                .into(),
        );
    } else {
        degraded.push(
            "table inet killswitch is not what the configuration compiles to; \
             `killswitch plan` shows the difference, `killswitch reload` mends it"
                .into(),
        );
    }
    false
}

/// The links with a guard, and whether every link that must have one has it.
fn guarded_links(
    live: &Live,
    policy: &Policy,
    locked: bool,
    degraded: &mut Vec<String>,
) -> (Vec<String>, bool) {
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
    if table.equals(&ruleset::guard(policy, None)) {
        return (names(&links), true);
    }
    let covered: Vec<Link> = links
        .iter()
        .filter(|link| covers(table, policy, std::slice::from_ref(link)))
        .cloned()
        .collect();
    for link in links.iter().filter(|link| !covered.contains(link)) {
        degraded.push(format!("egress guard: {} has none", link.name));
    }
    (names(&covered), covered.len() == links.len())
}

/// Whether the live guard holds these links' chains and all that they jump to.
fn covers(live: &LiveTable, policy: &Policy, links: &[Link]) -> bool {
    let table: Table = ruleset::guard(policy, Some(&netfilter::references(links)));
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
    missing.is_empty() && extra.is_empty()
}

fn describe_tunnel(live: &Live, tunnel: &crate::policy::Tunnel) -> Tunnel {
    let link = live.links.iter().find(|link| {
        link.name == tunnel.interface
            && link.kind.as_deref().is_some_and(|kind| tunnel.kinds.contains(kind))
    });
    Tunnel {
        interface: tunnel.interface.clone(),
        up: link.is_some_and(|link| link.up),
        server: None,
        endpoint: None,
        last_handshake_age_s: None,
        rx_bytes: link.map_or(0, |link| link.rx_bytes),
        tx_bytes: link.map_or(0, |link| link.tx_bytes),
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
