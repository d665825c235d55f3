//! A packet that a living server answers, and nobody beyond it ever sees.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};

/// Where traceroute begins: nobody listens there.
const PORT: u16 = 33434;
/// The server is the first router: it forwards nothing that has one hop left.
const HOPS: i32 = 1;
/// Somewhere on the Internet, so that the server must route it. Well-known resolvers, since
/// networks that do not exist may be dropped in silence.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
];

/// Sends into the tunnel, over IPv4 if it can.
///
/// To the outside, which the server answers by "time exceeded" (RFC 792, RFC 4443) before it asks
/// its firewall whether to forward; and to the tunnel's resolver, if there is one: most often the
/// server itself, which then answers "port unreachable". Which of them a server's firewall
/// silences differs. The kernel limits such answers to one a second for each client.
///
/// `allowed`: what is routed to the peer.
pub(super) fn send(
    interface: &str,
    addresses: &[IpNet],
    dns: &[IpAddr],
    allowed: &[IpNet],
) -> io::Result<()> {
    let mut outcome = Err(io::Error::other("the tunnel has no address"));
    let mut sources: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    sources.sort_by_key(IpAddr::is_ipv6);
    for source in sources {
        outcome = send_from(interface, source, &targets(source, dns, allowed));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The outside and a resolver, in the family of the source; as far as they are routed to the peer.
fn targets(source: IpAddr, dns: &[IpAddr], allowed: &[IpNet]) -> Vec<IpAddr> {
    let fits = |address: &IpAddr| {
        address.is_ipv4() == source.is_ipv4() && allowed.iter().any(|net| net.contains(address))
    };
    let mut targets: Vec<IpAddr> = OUTSIDE.into_iter().filter(fits).collect();
    targets.extend(dns.iter().copied().find(fits));
    if targets.is_empty() {
        // Only some networks are behind this tunnel.
        let same_family = |net: &&IpNet| net.addr().is_ipv4() == source.is_ipv4();
        targets.extend(allowed.iter().find(same_family).and_then(|net| net.hosts().next()));
    }
    targets
}

fn send_from(interface: &str, source: IpAddr, targets: &[IpAddr]) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    match source {
        IpAddr::V4(_) => socket.set_ttl(HOPS as u32)?,
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &HOPS)?,
    }
    let mut outcome = Err(io::Error::other("no address is routed to the peer"));
    for &target in targets {
        let sent = socket.send_to(&[], SocketAddr::new(target, PORT)).map(drop);
        // One is enough.
        outcome = outcome.or(sent);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets_of(source: &str, dns: &[&str], allowed: &[&str]) -> Vec<String> {
        let dns: Vec<IpAddr> = dns.iter().map(|it| it.parse().unwrap()).collect();
        let allowed: Vec<IpNet> = allowed.iter().map(|it| it.parse().unwrap()).collect();
        let targets = targets(source.parse().unwrap(), &dns, &allowed);
        targets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn targets_are_routed_to_the_peer_and_of_the_sources_family() {
        let all = ["0.0.0.0/0", "::/0"];
        assert_eq!(targets_of("10.0.0.2", &[], &all), ["9.9.9.9"]);
        assert_eq!(
            targets_of("fd00::2", &["10.0.0.1", "fd00::1"], &all),
            ["2620:fe::fe", "fd00::1"]
        );
        assert_eq!(targets_of("10.0.0.2", &["10.0.0.1"], &["10.0.0.0/8"]), ["10.0.0.1"]);
        assert_eq!(targets_of("10.0.0.2", &["8.8.8.8"], &["10.0.0.0/8"]), ["10.0.0.1"]);
        assert_eq!(targets_of("fd00::2", &[], &["10.0.0.0/8"]), [""; 0]);
    }
}
