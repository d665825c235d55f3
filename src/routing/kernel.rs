//! The guard's way into the kernel and back.

use std::fmt;
use std::io;
use std::path::Path;

use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use nix::errno::Errno;

use super::guard::{self, Action, Family, Guard, Route, RouteKind, Rule};
use super::links;
use super::message::{Request, decode_route, decode_rule, dump_routes, dump_rules, perform};
use crate::netlink::{self, Failure, Link, Socket};

/// Reverse-path validation then looks at the mark, so that a strict `rp_filter` lets the servers'
/// replies in (threat 52).
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// What went wrong, in the kernel's words where it had any.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket itself: opening, sending, receiving.
    #[error("routing netlink socket: {0}")]
    Netlink(#[source] io::Error),
    /// The kernel did not list what it has.
    #[error("cannot list {what}: {error}")]
    Read {
        /// Rules, routes or links.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The kernel refused requests; the others took effect.
    #[error("routing guard incomplete: {}", join(.0))]
    Refused(Vec<Refusal>),
    /// The kernel accepted everything, yet does not list it.
    #[error("routing guard incomplete, not there after adding: {}", .0.join("; "))]
    Vanished(Vec<String>),
}

impl Error {
    /// Nothing but that there is no IPv6: not in the kernel (EAFNOSUPPORT, EOPNOTSUPP), or disabled
    /// on the link (EACCES, net/ipv6/route.c).
    pub fn is_ipv6_missing(&self) -> bool {
        const MISSING: [Errno; 3] = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES];
        let missing = |refusal: &Refusal| MISSING.contains(&Errno::from_raw(refusal.failure.errno));
        matches!(self, Error::Refused(refusals) if refusals.iter().all(missing))
    }

    pub(super) fn unless_none(refusals: Vec<Refusal>) -> Result<(), Error> {
        if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
    }
}

/// The first few: when one is refused for want of a privilege, all are.
fn join(refusals: &[Refusal]) -> String {
    const SHOWN: usize = 3;
    let mut words: Vec<String> = refusals.iter().take(SHOWN).map(ToString::to_string).collect();
    if refusals.len() > SHOWN {
        words.push(format!("and {} more", refusals.len() - SHOWN));
    }
    words.join("; ")
}

/// A request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked, in the words of `ip`.
    pub request: String,
    /// The kernel's answer.
    pub failure: Failure,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.request, self.failure)
    }
}

/// What [`apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Rules and routes that were not there before.
    pub added: usize,
    /// Those of ours that the policy no longer wants.
    pub removed: usize,
    /// What weakens the guard on this machine, for people.
    pub degraded: Vec<String>,
}

/// What this kernel knows of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6 {
    /// Rules and routes.
    #[default]
    Guarded,
    /// IPv6, but no policy rules: the guard cannot cover it.
    WithoutRules,
    /// Nothing, so nothing can leave by it.
    Absent,
}

/// What the kernel has of ours.
#[derive(Debug, Clone, Default)]
pub struct Live {
    rules: Vec<(Rule, RuleMessage)>,
    routes: Vec<(Route, RouteHeader)>,
    /// Every link, if any of those routes leads into one.
    links: Vec<Link>,
    /// What it knows of IPv6.
    pub ipv6: Ipv6,
}

/// One difference between what the kernel has of ours and the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Missing, or there and not wanted.
    pub added: bool,
    /// Whether more may leave with it than without it.
    pub opens: bool,
    /// In the words of `ip`.
    pub text: String,
}

impl Live {
    /// Our rules, in the kernel's order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// All routes of our table, the tunnel's among them.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(|(route, _)| route)
    }

    /// What the guard wants and the kernel does not have.
    pub fn missing(&self, guard: &Guard) -> Vec<String> {
        let guard = self.attainable(guard);
        let rules = guard::compare(&guard.rules, &self.rules).0;
        let routes = guard::compare(&guard.routes, &self.routes).0;
        describe(rules.into_iter(), routes.into_iter())
    }

    /// What the kernel has of ours and the guard does not want. The tunnel's routes are welcome.
    pub fn extra(&self, guard: &Guard) -> Vec<String> {
        let rules = guard::compare(&guard.rules, &self.rules).1;
        let routes = self.unwanted_routes(guard);
        describe(
            rules.into_iter().map(|(rule, _)| rule),
            routes.into_iter().map(|(route, _)| route),
        )
    }

    /// Whether a route of ours leads into this link.
    pub fn leads_into(&self, link: u32) -> bool {
        self.routes.iter().any(|(route, _)| route.kind == RouteKind::Link(link))
    }

    /// What [`apply`] would change.
    pub fn changes(&self, guard: &Guard) -> Vec<Change> {
        let attainable = self.attainable(guard);
        let (missing, extra) = guard::compare(&attainable.rules, &self.rules);
        let added = missing.into_iter().map(|rule| (true, rule));
        let removed = extra.into_iter().map(|(rule, _)| (false, rule));
        let rules = added.chain(removed).map(|(added, rule)| Change {
            added,
            opens: rule.action.opens(),
            text: rule.to_string(),
        });
        let missing = guard::compare(&attainable.routes, &self.routes).0;
        let added = missing.into_iter().map(|route| (true, route));
        let removed = self.unwanted_routes(guard).into_iter().map(|(route, _)| (false, route));
        let routes = added.chain(removed).map(|(added, route)| Change {
            added,
            opens: route.kind != RouteKind::Unreachable,
            text: route.to_string(),
        });
        rules.chain(routes).collect()
    }

    fn unwanted_routes<'a>(&'a self, guard: &Guard) -> Vec<&'a (Route, RouteHeader)> {
        let mut routes = guard::compare(&guard.routes, &self.routes).1;
        routes.retain(|(route, _)| match route.kind {
            RouteKind::Link(index) => !self.is_tunnel(guard, index),
            RouteKind::Unreachable | RouteKind::Other => true,
        });
        routes
    }

    fn is_tunnel(&self, guard: &Guard, index: u32) -> bool {
        let link = self.links.iter().find(|link| link.index == index);
        guard
            .tunnel
            .as_ref()
            .zip(link)
            .is_some_and(|(it, link)| it.is(&link.name, link.kind.as_deref()))
    }

    /// The guard without IPv6 where there is none to guard.
    fn attainable(&self, guard: &Guard) -> Guard {
        let mut guard = guard.clone();
        if self.ipv6 == Ipv6::Absent {
            guard.without_ipv6();
        }
        guard
    }

    /// Whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.routes.is_empty()
    }
}

fn describe<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    routes: impl Iterator<Item = &'a Route>,
) -> Vec<String> {
    rules.map(ToString::to_string).chain(routes.map(ToString::to_string)).collect()
}

impl Guard {
    fn without_ipv6(&mut self) {
        self.rules.retain(|rule| rule.family == Family::V4);
        self.routes.retain(|route| Family::of(route.destination.addr()) == Family::V4);
    }
}

/// Makes the kernel's rules and routes those of the guard, and nothing else of ours.
///
/// What is missing is added before what is obsolete goes, and among the added what closes comes
/// before what opens, so at no moment more may leave than under one of the two policies. A rule of
/// somebody else's is never touched. As much as possible is done even if a part fails.
///
/// # Errors
/// What the kernel refused or does not list; the guard is then incomplete.
pub fn apply(guard: &Guard) -> Result<Report, Error> {
    apply_with(&open()?, guard)
}

/// As [`apply`], by this socket.
///
/// # Errors
/// As [`apply`].
pub fn apply_with(socket: &Socket, guard: &Guard) -> Result<Report, Error> {
    let mut guard = guard.clone();
    let mut report = Report::default();
    // A closed guard first: without a listing everything is added, and nothing is removed.
    let (live, unread) = match read_with(socket) {
        Ok(live) => (live, None),
        Err(error) => (Live::default(), Some(error)),
    };
    adapt(socket, &mut guard, &live, &mut report);

    let (missing_rules, mut obsolete_rules) = guard::compare(&guard.rules, &live.rules);
    let (missing_routes, _) = guard::compare(&guard.routes, &live.routes);
    let obsolete_routes = live.unwanted_routes(&guard);
    let mut requests: Vec<Request> =
        missing_routes.iter().map(|route| Request::add_route(route)).collect();
    // Backwards: the kernel ignores a goto until its target is there.
    let (opening, closing): (Vec<&Rule>, Vec<&Rule>) =
        missing_rules.into_iter().rev().partition(|rule| rule.action.opens());
    requests.extend(closing.into_iter().chain(opening).map(Request::add_rule));
    report.added = requests.len();
    let mut refusals = perform(socket, &requests)?;

    if !refusals.is_empty() {
        // What still closes stays while its successor is missing.
        obsolete_rules.retain(|(rule, _)| rule.action.opens());
    }
    obsolete_rules.sort_by_key(|(rule, _)| !rule.action.opens());
    let requests: Vec<Request> = obsolete_routes
        .iter()
        .map(|(route, header)| Request::delete_route(route, header))
        .chain(obsolete_rules.iter().map(|(rule, message)| Request::delete_rule(rule, message)))
        .collect();
    report.removed = requests.len();
    refusals.extend(perform(socket, &requests)?);
    Error::unless_none(refusals)?;
    if let Some(error) = unread {
        return Err(error);
    }
    if report.added + report.removed > 0 {
        let missing = read_with(socket)?.missing(&guard);
        if !missing.is_empty() {
            return Err(Error::Vanished(missing));
        }
    }
    Ok(report)
}

/// Fits the guard to this machine: what it cannot have is left out and said.
fn adapt(socket: &Socket, guard: &mut Guard, live: &Live, report: &mut Report) {
    match live.ipv6 {
        Ipv6::Guarded => {}
        Ipv6::Absent => guard.without_ipv6(),
        Ipv6::WithoutRules => {
            if !guard.rules.is_empty() {
                report.degraded.push("routing guard: this kernel has no IPv6 policy rules".into());
            }
            guard.without_ipv6();
        }
    }
    let obstacle = match links::group(socket, &guard.internal) {
        Ok(strays) if strays.is_empty() => None,
        Ok(strays) => Some(format!(
            "links of other kinds are in a link group: {} (ip link set dev NAME group default)",
            strays.join(", ")
        )),
        Err(error) => Some(error.to_string()),
    };
    if let Some(obstacle) = obstacle
        && !guard.internal.is_empty()
    {
        guard.rules.retain(|rule| rule.action != Action::MainInternal);
        report
            .degraded
            .push(format!("routing guard: internal bridges are left out, since {obstacle}"));
    }
    if guard.rules.iter().any(|rule| rule.mark.is_some())
        && let Err(error) = set_src_valid_mark()
    {
        report.degraded.push(format!(
            "routing guard: cannot set {SRC_VALID_MARK} to 1 ({error}); where rp_filter is on, \
             replies of the server are dropped"
        ));
    }
}

fn set_src_valid_mark() -> io::Result<()> {
    if std::fs::read(SRC_VALID_MARK).is_ok_and(|value| value.trim_ascii() == b"1") {
        return Ok(());
    }
    std::fs::write(SRC_VALID_MARK, "1")
}

/// Reads what the kernel has of ours.
///
/// # Errors
/// The kernel does not answer.
pub fn read() -> Result<Live, Error> {
    read_with(&open()?)
}

/// Removes our rules, all routes of our table (the tunnel's, too) and our link group; how many there were.
///
/// `src_valid_mark` stays set: it changes nothing for packets without a mark, and another VPN may
/// have come to need it meanwhile (wg-quick leaves it set, too).
///
/// # Errors
/// What the kernel refused to remove.
pub fn remove() -> Result<usize, Error> {
    remove_with(&open()?)
}

/// As [`remove`], by this socket.
///
/// # Errors
/// As [`remove`].
pub fn remove_with(socket: &Socket) -> Result<usize, Error> {
    /// Equal routes take a round each.
    const ROUNDS: usize = 4;
    let mut removed = 0;
    let mut refusals = Vec::new();
    for _ in 0..ROUNDS {
        let live = read_with(socket)?;
        if live.is_empty() {
            break;
        }
        let requests: Vec<Request> = live
            .rules
            .iter()
            .map(|(rule, message)| Request::delete_rule(rule, message))
            .chain(live.routes.iter().map(|(route, header)| Request::delete_route(route, header)))
            .collect();
        refusals = perform(socket, &requests)?;
        removed += requests.len() - refusals.len();
    }
    links::group(socket, &Default::default())?;
    Error::unless_none(refusals)?;
    Ok(removed)
}

fn open() -> Result<Socket, Error> {
    Socket::open(netlink::Family::Route).map_err(Error::Netlink)
}

fn read_with(socket: &Socket) -> Result<Live, Error> {
    let mut live = Live::default();
    for family in Family::BOTH {
        let rules = match dump_rules(socket, family) {
            Err(error) if family == Family::V6 && is_unsupported(&error) => {
                live.ipv6 = ipv6_without_rules();
                continue;
            }
            rules => rules.map_err(|error| Error::Read { what: "policy rules", error })?,
        };
        let decoded = rules.into_iter().map(|message| (decode_rule(&message, family), message));
        live.rules.extend(decoded);
        let routes: Vec<RouteMessage> = dump_routes(socket, family)
            .map_err(|error| Error::Read { what: "routes of our table", error })?;
        let decoded = routes
            .into_iter()
            .filter_map(|message| Some((decode_route(&message, family)?, message.header)));
        live.routes.extend(decoded);
    }
    if live.routes().any(|route| matches!(route.kind, RouteKind::Link(_))) {
        live.links = links::read(socket)?;
    }
    Ok(live)
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP]
        .iter()
        .any(|&errno| error.raw_os_error() == Some(errno as i32))
}

/// The file is there whenever the IPv6 stack is. A refused socket alone proves nothing: a sandbox
/// may refuse it.
fn ipv6_without_rules() -> Ipv6 {
    if Path::new("/proc/thread-self/net/if_inet6").exists() {
        Ipv6::WithoutRules
    } else {
        Ipv6::Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[test]
    fn without_ipv6_only_ipv4_is_missing() {
        let guard = Guard::from_policy(&Policy::strictest());
        let missing = |ipv6| Live { ipv6, ..Live::default() }.missing(&guard);
        let whole = guard.rules.len() + guard.routes.len();
        assert_eq!(missing(Ipv6::Guarded).len(), whole);
        assert_eq!(missing(Ipv6::WithoutRules).len(), whole);
        assert!(missing(Ipv6::Absent).len() < whole);
        assert!(missing(Ipv6::Absent).iter().all(|line| !line.starts_with("-6")));
    }

    #[test]
    fn many_refusals_are_summed_up() {
        let failure = Failure { errno: 1, text: Some("no".into()), offset: None };
        let refusal = Refusal { request: "add x".into(), failure };
        let error = Error::Refused(vec![refusal; 5]).to_string();
        assert!(error.ends_with("Operation not permitted (os error 1): no; and 2 more"), "{error}");
    }
}
