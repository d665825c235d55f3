//! The link group that tells internal bridges from links that leave the machine.

use std::collections::BTreeSet;

use super::guard::{Action, GROUP, Guard};
use super::kernel::Error;
use super::message::{DEFAULT_GROUP, Request, perform};
use crate::netlink::{self, Link, Socket};
use crate::policy::{GUEST_KINDS, LinkPattern, Policy};

/// Puts the bridges that the policy calls internal into our link group, and takes out of it those
/// that are not (or no more) so: to be called again whenever links come or change.
///
/// Returns the names of other links in a group of their own. While there are any, the rule for
/// internal bridges would let packets out through them; [`super::apply`] then leaves it out.
///
/// # Errors
/// The kernel's refusal.
pub fn group_internal_bridges(socket: &Socket, policy: &Policy) -> Result<Vec<String>, Error> {
    group(socket, &policy.internal)
}

pub(super) fn group(
    socket: &Socket,
    internal: &BTreeSet<LinkPattern>,
) -> Result<Vec<String>, Error> {
    let links = read(socket)?;
    let mut requests = Vec::new();
    let mut strays = Vec::new();
    for link in &links {
        let wanted = is_internal(link, &links, internal);
        match link.group {
            DEFAULT_GROUP if wanted => {
                requests.push(Request::set_group(link.index, &link.name, GROUP));
            }
            GROUP if !wanted => {
                requests.push(Request::set_group(link.index, &link.name, DEFAULT_GROUP));
            }
            DEFAULT_GROUP | GROUP => {}
            _ if wanted => {}
            _ => strays.push(link.name.clone()),
        }
    }
    Error::unless_none(perform(socket, &requests)?)?;
    Ok(strays)
}

pub(super) fn read(socket: &Socket) -> Result<Vec<Link>, Error> {
    netlink::links(socket).map_err(|error| Error::Read { what: "links", error })
}

/// The names of links that are in our link group and no internal bridge: where there is a rule for
/// those, packets may leave by them.
pub fn grouped_wrongly(links: &[Link], guard: &Guard) -> Vec<String> {
    let wrong = |link: &&Link| link.group == GROUP && !is_internal(link, links, &guard.internal);
    let opens = guard.rules.iter().any(|rule| rule.action == Action::MainInternal);
    links.iter().filter(wrong).filter(|_| opens).map(|link| link.name.clone()).collect()
}

fn is_internal(link: &Link, links: &[Link], internal: &BTreeSet<LinkPattern>) -> bool {
    link.kind.as_deref() == Some("bridge")
        && internal.iter().any(|pattern| pattern.matches(&link.name))
        && links
            .iter()
            .filter(|port| port.master == Some(link.index))
            .all(|port| port.kind.as_deref().is_some_and(|kind| GUEST_KINDS.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, bridge: Option<u32>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: (!kind.is_empty()).then(|| kind.into()),
            ethernet: true,
            up: true,
            running: true,
            mtu: 1500,
            master: bridge,
            ..Link::default()
        }
    }

    #[test]
    fn only_bridges_to_guests_are_internal() {
        let internal = [LinkPattern::Prefix("br-".into())].into();
        let mut links = vec![
            link(1, "br-a", "bridge", None),
            link(2, "br-b", "veth", None),
            link(3, "br0", "bridge", None),
            link(4, "veth1", "veth", Some(1)),
        ];
        let are = |links: &[Link]| -> Vec<bool> {
            links.iter().map(|link| is_internal(link, links, &internal)).collect()
        };
        assert_eq!(are(&links), [true, false, false, false]);
        links.push(link(5, "eth0", "", Some(1)));
        assert_eq!(are(&links), [false; 5]);
    }
}
