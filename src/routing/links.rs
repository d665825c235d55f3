//! The link group that tells internal bridges from links that leave the machine.

use std::collections::{BTreeMap, BTreeSet};

use super::guard::GROUP;
use super::kernel::Error;
use super::message::{DEFAULT_GROUP, Request, dump_links, perform};
use crate::netlink::{Attributes, Message, Socket};
use crate::policy::{LinkPattern, Policy};

/// Kinds of ports that lead to containers and guests. Any other (a NIC has none) makes a bridge a
/// way out.
const GUEST_KINDS: [&str; 2] = ["veth", "tun"];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    kind: String,
    group: u32,
    bridge: Option<u32>,
}

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
    let answers = dump_links(socket).map_err(|error| Error::Read { what: "links", error })?;
    let links: Vec<Link> = answers.iter().filter_map(decode).collect();
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

fn is_internal(link: &Link, links: &[Link], internal: &BTreeSet<LinkPattern>) -> bool {
    link.kind == "bridge"
        && internal.iter().any(|pattern| matches(pattern, &link.name))
        && links
            .iter()
            .filter(|port| port.bridge == Some(link.index))
            .all(|port| GUEST_KINDS.contains(&port.kind.as_str()))
}

fn matches(pattern: &LinkPattern, name: &str) -> bool {
    match pattern {
        LinkPattern::Exact(exact) => name == exact,
        LinkPattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
    }
}

/// Attributes by hand: the typed decoder gives up on a link with one that it does not understand.
fn decode(message: &Message) -> Option<Link> {
    /// `ifinfomsg`: family, type, index, flags, change.
    const HEADER: usize = 16;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_GROUP: u16 = 27;
    const IFLA_INFO_KIND: u16 = 1;

    let word = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
    };
    let attributes: BTreeMap<u16, &[u8]> = Attributes(message.payload.get(HEADER..)?).collect();
    let info = attributes.get(&IFLA_LINKINFO).copied().unwrap_or_default();
    let kind = Attributes(info).find(|(kind, _)| *kind == IFLA_INFO_KIND);
    Some(Link {
        index: word(message.payload.get(4..8)?)?,
        name: text(attributes.get(&IFLA_IFNAME)?),
        kind: kind.map(|(_, value)| text(value)).unwrap_or_default(),
        group: attributes.get(&IFLA_GROUP).and_then(|value| word(value)).unwrap_or_default(),
        bridge: attributes.get(&IFLA_MASTER).and_then(|value| word(value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, bridge: Option<u32>) -> Link {
        Link { index, name: name.into(), kind: kind.into(), group: 0, bridge }
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
