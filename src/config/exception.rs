//! What `[allow]` could open, opened for a while: the same words, held to the same checks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::draft::PROTOCOLS;
use super::fields::choose;
use super::text::quote;
use super::value::{self, Complaint};
use super::{Config, Inbound, Protocol, validate};

/// One thing that a key of `[allow]` could open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// As in `allow.lan`: "192.168.1.0/24".
    Lan(IpNet),
    /// As in `allow.ntp`: "192.0.2.123".
    Ntp(IpAddr),
    /// As in `allow.inbound`: "tcp/22 from 192.168.1.0/24".
    Inbound(Inbound),
}

/// What kinds of exceptions there are: keys of `[allow]`.
pub const EXCEPTION_KINDS: [&str; 3] = ["lan", "ntp", "inbound"];

/// Bytes; more than any exception has.
const LONGEST: usize = 100;

impl Exception {
    /// Reads the words for one of [`EXCEPTION_KINDS`]: what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn parse(kind: &str, what: &str) -> Result<Self, String> {
        if what.len() > LONGEST {
            return Err(format!("{} is too long for any exception", quote(what)));
        }
        read(kind, what).map_err(Complaint::in_words)
    }

    /// One of [`EXCEPTION_KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Exception::Lan(_) => "lan",
            Exception::Ntp(_) => "ntp",
            Exception::Inbound(_) => "inbound",
        }
    }

    /// Whether a configuration could have it.
    ///
    /// # Errors
    /// What of the configuration it contradicts.
    pub fn check(&self, config: &Config) -> Result<(), String> {
        let network = match self {
            Exception::Lan(network) => network,
            Exception::Ntp(address) => {
                let mut servers = config.servers.iter().flat_map(|server| &server.endpoints);
                return match servers.any(|endpoint| endpoint.ip() == *address) {
                    true => Err(validate::ntp_at_server(*address)),
                    false => Ok(()),
                };
            }
            Exception::Inbound(_) => return Ok(()),
        };
        let nowhere = String::new;
        let addresses = config.tunnel.addresses.iter().map(|&address| (address, nowhere()));
        let endpoints = config.servers.iter().flat_map(|server| &server.endpoints);
        let endpoints = endpoints.map(|&endpoint: &SocketAddr| (endpoint, nowhere()));
        match validate::not_local(network, addresses, endpoints).into_iter().next() {
            Some(complaint) => Err(complaint.in_words()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exception::Lan(network) => network.fmt(out),
            Exception::Ntp(address) => address.fmt(out),
            Exception::Inbound(Inbound { protocol, port, from }) => {
                let name = match protocol {
                    Protocol::Udp => "udp",
                    Protocol::Tcp => "tcp",
                };
                write!(out, "{name}/{port} from {from}")
            }
        }
    }
}

fn read(kind: &str, what: &str) -> Result<Exception, Complaint> {
    Ok(match choose(kind, &EXCEPTION_KINDS.map(|kind| (kind, kind)))? {
        "lan" => Exception::Lan(value::local_network(what)?),
        "ntp" => Exception::Ntp(value::host_address(what)?),
        "inbound" => Exception::Inbound(inbound(what)?),
        other => unreachable!("{other} is in EXCEPTION_KINDS"),
    })
}

fn inbound(what: &str) -> Result<Inbound, Complaint> {
    let words = || {
        let (service, from) = what.split_once(" from ")?;
        let (protocol, port) = service.split_once('/')?;
        Some((protocol, port, from))
    };
    let (protocol, port, from) = words().ok_or_else(|| {
        Complaint::new(format!("{} is not PROTOCOL/PORT from NETWORK", quote(what)))
            .help("write e.g. \"tcp/22 from 192.168.1.0/24\"")
    })?;
    Ok(Inbound {
        protocol: choose(protocol, PROTOCOLS)?,
        port: value::port(port, "service")?,
        from: value::network(from)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (kind, what) in [
            ("lan", "192.168.1.0/24"),
            ("lan", "fd00:9::/64"),
            ("ntp", "192.0.2.123"),
            ("ntp", "2001:db8::123"),
            ("inbound", "tcp/22 from 192.168.1.0/24"),
            ("inbound", "udp/65535 from 2001:db8::/32"),
        ] {
            let exception = Exception::parse(kind, what).expect(what);
            assert_eq!((exception.kind(), exception.to_string().as_str()), (kind, what));
        }
    }

    #[test]
    fn what_the_configuration_refuses_is_refused() {
        for (kind, what, why) in [
            ("lna", "192.168.1.0/24", "did you mean \"lan\"?"),
            ("", "192.168.1.0/24", "unknown value"),
            ("lan", "0.0.0.0/0", "the whole Internet"),
            ("lan", "::/0", "the whole Internet"),
            ("lan", "128.0.0.0/1", "too large"),
            ("lan", "192.168.1.7/24", "beyond its prefix"),
            ("lan", "192.168.1.0", "no prefix length"),
            ("lan", "224.0.0.0/8", "multicast"),
            ("lan", "192.168.1.0/24 ", "no valid prefix length"),
            ("ntp", "pool.ntp.org", "not an IP address"),
            ("ntp", "127.0.0.1", "loopback"),
            ("ntp", "::ffff:192.0.2.1", "write it as IPv4"),
            ("inbound", "tcp/22", "not PROTOCOL/PORT from NETWORK"),
            ("inbound", "tcp 22 from 192.168.1.0/24", "not PROTOCOL/PORT"),
            ("inbound", "sctp/22 from 192.168.1.0/24", "unknown value"),
            ("inbound", "tcp/0 from 192.168.1.0/24", "port 0"),
            ("inbound", "tcp/+22 from 192.168.1.0/24", "not a port"),
            ("inbound", "tcp/22 from  192.168.1.0/24", "not an IP address"),
            ("inbound", "tcp/22 from 192.168.1.0/24 ", "no valid prefix length"),
            ("inbound", "tcp/22 from 192.168.1.1/24", "beyond its prefix"),
        ] {
            let said = Exception::parse(kind, what).expect_err(what);
            assert!(said.contains(why), "{kind} {what:?}: {said}");
        }
        let long = "1".repeat(LONGEST + 1);
        assert!(Exception::parse("ntp", &long).is_err_and(|said| said.len() < 2 * LONGEST));
    }
}
