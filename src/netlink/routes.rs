use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::addresses::ip;
use super::encode::dump;
use super::{Attributes, Message, Socket};

const RTM_GETROUTE: u16 = 26;
/// `rtmsg`: family, length of destination and source, TOS, table, protocol, scope, type, flags.
const RTMSG: usize = 12;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;

/// A route that leads somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Index of the link that it leaves by; absent where it has several.
    pub link: Option<u32>,
}

/// The route of table main that the socket's namespace has to an address, whatever its policy rules
/// say; none if the narrowest one refuses.
///
/// Listed, not looked up: a look-up obeys the rules of whoever has some. Read by hand: routes are other
/// programs', and nothing strange in one may hide the rest.
///
/// # Errors
/// The kernel's refusal.
pub fn main_route(socket: &Socket, to: IpAddr) -> io::Result<Option<Route>> {
    let mut request = [0; RTMSG];
    request[0] = if to.is_ipv4() { AF_INET } else { AF_INET6 };
    let answers = socket.dump_consistent(&dump(RTM_GETROUTE, &request))?;
    let candidates = answers
        .iter()
        .filter_map(read)
        .filter(|it| it.table == RT_TABLE_MAIN && it.route.destination.contains(&to));
    let best = candidates.max_by_key(|it| (it.route.destination.prefix_len(), Reverse(it.metric)));
    Ok(best.filter(|it| it.unicast).map(|it| it.route))
}

/// Of what is listed: a route of table local that leads to a link, as those to the addresses of this
/// machine themselves do not.
pub(crate) fn read_local_route(message: &Message) -> Option<Route> {
    read(message).filter(|it| it.table == RT_TABLE_LOCAL && it.unicast).map(|it| it.route)
}

struct Listed {
    table: u8,
    route: Route,
    metric: u32,
    unicast: bool,
}

fn read(message: &Message) -> Option<Listed> {
    const RTN_UNICAST: u8 = 1;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_PRIORITY: u16 = 6;
    let header = message.payload.get(..RTMSG)?;
    let (family, length, table, kind) = (header[0], header[1], header[4], header[7]);
    let attributes = || Attributes(&message.payload[RTMSG..]);
    let number = |wanted| attributes().get(wanted)?.try_into().ok().map(u32::from_ne_bytes);
    let everywhere = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let address = attributes().get(RTA_DST).map_or(Some(everywhere), ip)?;
    Some(Listed {
        table,
        route: Route { destination: IpNet::new(address, length).ok()?, link: number(RTA_OIF) },
        metric: number(RTA_PRIORITY).unwrap_or_default(),
        unicast: kind == RTN_UNICAST,
    })
}
