//! Settings of the kernel, resolvers, files and the clock.

use std::net::IpAddr;

use super::known;
use crate::audit::facts::Mode;
use crate::audit::facts::is_eui64;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};
use crate::lock::State;
use crate::netfilter::guarded;
use crate::netlink::Link;

pub(super) fn settings(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let links = guarded(&wanted.policy, known(&facts.links)?);
    let mut found = Found::default();
    let of = |link: &str, key: &str| number(facts, &format!("net/ipv4/conf/{link}/{key}"));
    // The kernel takes the higher one of rp_filter and arp_ignore, and "or" of the others
    // (IN_DEV_MAXCONF, IN_DEV_ORCONF in include/linux/inetdevice.h).
    let either = |link: &str, key: &str| of("all", key).max(of(link, key));
    for link in &links {
        let name = link.name.as_str();
        let strict = either(name, "rp_filter") == 1;
        if strict && either(name, "src_valid_mark") == 0 && wanted.policy.routing_guard {
            let cure = "sysctl -w net.ipv4.conf.all.src_valid_mark=1";
            found.find(&SRC_VALID_MARK, format!("link {name}: rp_filter is 1"), cure);
        }
        if either(name, "route_localnet") != 0 {
            let cure = format!(
                "sysctl -w net.ipv4.conf.all.route_localnet=0 net.ipv4.conf.{name}.route_localnet=0"
            );
            found.find(&ROUTE_LOCALNET, format!("link {name}"), cure);
        }
        if answers_for_the_tunnel(facts, wanted, link) && either(name, "arp_ignore") == 0 {
            let cure = "sysctl -w net.ipv4.conf.all.arp_ignore=1";
            found.find(&ARP_IGNORE, format!("link {name}: arp_ignore is 0"), cure);
        }
    }
    let forwards = [("IPv4", "net/ipv4/ip_forward"), ("IPv6", "net/ipv6/conf/all/forwarding")];
    for (family, key) in forwards {
        if number(facts, key) != 0 && !wanted.policy.forward_into_tunnel {
            found.note(format!("{family} is forwarded ({key}), which the lock drops"));
        }
    }
    for (key, what) in
        [("accept_redirects", "ICMP redirects"), ("accept_source_route", "source routes")]
    {
        if links.iter().any(|link| of("all", key) != 0 && of(&link.name, key) != 0) {
            found.note(format!("{what} are accepted ({key}): the lock decides by link and address, and drops what does not fit"));
        }
    }
    Ok(found)
}

fn number(facts: &Facts, key: &str) -> u32 {
    facts.settings.get(key).and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// With the egress guard no such answer leaves.
fn answers_for_the_tunnel(facts: &Facts, wanted: &Wanted, link: &Link) -> bool {
    let tunnel = wanted.policy.tunnel.as_ref();
    let has_address = tunnel.is_some_and(|tunnel| tunnel.addresses.iter().any(IpAddr::is_ipv4));
    link.ethernet && has_address && !facts.status.layers.egress.contains(&link.name)
}

/// While the tunnel is down the file holds what the network gave, and nobody there can be asked.
pub(super) fn resolvers(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let resolvers = known(&facts.resolvers)?;
    if wanted.dns.is_empty() {
        return Err(Unknown::NotApplicable("tunnel.dns names no resolver".into()));
    }
    if facts.status.state != State::Connected {
        return Err(Unknown::NotApplicable("the tunnel is not up".into()));
    }
    let mut found = Found::default();
    for address in resolvers.iter().filter(|it| !wanted.dns.contains(it)) {
        match address.is_loopback() {
            true => found.note(format!(
                "{address} asks on this machine's behalf: nothing leaves but through the tunnel"
            )),
            false => found.find(
                &RESOLVER_OUTSIDE,
                format!("{address} in /etc/resolv.conf"),
                "killswitch reconnect; or remove the line from /etc/resolv.conf",
            ),
        }
    }
    Ok(found)
}

/// They go through the tunnel or are dropped; without the lock they tell where this machine is.
pub(super) fn connectivity(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for file in known(&facts.connectivity)? {
        found.note(format!(
            "{file}: NetworkManager looks for the Internet on every link; the lock drops that"
        ));
    }
    Ok(found)
}

pub(super) fn privacy(facts: &Facts, wanted: &Wanted) -> Result<Found, Unknown> {
    let links = guarded(&wanted.policy, known(&facts.links)?);
    let mut found = Found::default();
    for address in known(&facts.addresses)?.iter().filter(|it| it.usable && is_eui64(it.address)) {
        if let Some(link) = links.iter().find(|link| link.index == address.link) {
            let (name, address) = (&link.name, address.address);
            found.note(format!("link {name}: {address} holds the hardware's address; the network sees it in neighbour discovery (use_tempaddr, addr_gen_mode)"));
        }
    }
    Ok(found)
}

pub(super) fn files(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for file in known(&facts.modes)?.iter().filter(|file| is_open(file)) {
        let what = format!("{}: user {}, mode {:04o}", file.path, file.user, file.mode);
        found.find(&FILE_WRITABLE, what, format!("chown root: {0}; chmod go-w {0}", file.path));
    }
    Ok(found)
}

/// In a directory with the sticky bit nobody can exchange what is another's.
fn is_open(file: &Mode) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    file.user != 0 || (file.mode & OTHERS_WRITE != 0 && file.mode & STICKY == 0)
}

/// 1 November 2026: no clock that is right has shown less to this program.
const RELEASED: u64 = 1_793_491_200;

pub(super) fn clock(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    /// A file may have been written on a machine whose clock is a little ahead.
    const HOUR: u64 = 3600;
    let &(now, newest) = known(&facts.clock)?;
    let mut found = Found::default();
    let cure = "date --utc; then set it: timedatectl set-time, or allow.ntp";
    if now < RELEASED {
        found.find(&CLOCK_BEHIND, "the clock is before this program was made", cure);
    } else if now + HOUR < newest {
        let hours = (newest - now) / HOUR;
        found.find(&CLOCK_BEHIND, format!("the configuration was written in {hours} hours"), cure);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use super::*;

    fn with(settings: &[(&str, &str)]) -> Facts {
        let mut facts = facts();
        let named = settings.iter();
        facts.settings.extend(
            named.map(|(key, value)| (format!("net/ipv4/conf/{key}"), (*value).to_owned())),
        );
        facts
    }

    #[test]
    fn settings_that_matter_are_found_and_harmless_ones_are_not() {
        let debian = [
            ("all/rp_filter", "0"),
            ("eth0/rp_filter", "2"),
            ("all/accept_redirects", "1"),
            ("eth0/accept_redirects", "1"),
            ("all/arp_ignore", "0"),
        ];
        assert_eq!(ids(&with(&debian), &wanted()), [""; 0]);
        let strict = [("eth0/rp_filter", "1")];
        assert_eq!(ids(&with(&strict), &wanted()), ["src-valid-mark"]);
        let valid = [("eth0/rp_filter", "1"), ("all/src_valid_mark", "1")];
        assert_eq!(ids(&with(&valid), &wanted()), [""; 0]);
        assert_eq!(ids(&with(&[("all/route_localnet", "1")]), &wanted()), ["route-localnet"]);
        assert_eq!(ids(&with(&[("docker0/route_localnet", "1")]), &wanted()), [""; 0]);
    }

    #[test]
    fn arp_is_answered_where_no_egress_guard_stops_it() {
        let mut wanted = wanted();
        wanted.policy.egress_guard = false;
        let mut it = with(&[("all/arp_ignore", "0")]);
        it.status.layers.egress.clear();
        assert_eq!(ids(&it, &wanted), ["arp-ignore", "egress-guard-off"]);
        it.settings.insert("net/ipv4/conf/all/arp_ignore".into(), "1".into());
        assert_eq!(ids(&it, &wanted), ["egress-guard-off"]);
    }

    #[test]
    fn resolvers_are_judged_while_the_tunnel_is_up() {
        let mut it = facts();
        it.resolvers = Ok(vec!["192.168.1.1".parse().unwrap()]);
        assert_eq!(ids(&it, &wanted()), ["resolver-outside"]);
        it.resolvers = Ok(vec!["127.0.0.53".parse().unwrap(), "10.64.0.1".parse().unwrap()]);
        assert_eq!(ids(&it, &wanted()), [""; 0]);
        it.resolvers = Ok(vec!["192.168.1.1".parse().unwrap()]);
        it.status.state = State::Blocked;
        assert_eq!(ids(&it, &wanted()), [""; 0]);
    }

    #[test]
    fn files_are_roots_alone() {
        let file = |user, mode| {
            let mut it = facts();
            it.modes = Ok(vec![Mode { path: "/x".into(), user, mode }]);
            ids(&it, &wanted())
        };
        assert_eq!(file(0, 0o755), [""; 0]);
        assert_eq!(file(0, 0o775), ["file-writable"]);
        assert_eq!(file(1000, 0o755), ["file-writable"]);
        assert_eq!(file(0, 0o1777), [""; 0]);
    }

    #[test]
    fn a_clock_in_the_past_is_behind() {
        let clock = |now, newest| {
            let mut it = facts();
            it.clock = Ok((now, newest));
            ids(&it, &wanted())
        };
        assert_eq!(clock(1_000_000, 0), ["clock-behind"]);
        assert_eq!(clock(RELEASED + 10, RELEASED + 10_000), ["clock-behind"]);
        assert_eq!(clock(RELEASED + 10, RELEASED + 20), [""; 0]);
    }
}
