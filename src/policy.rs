//! What may leave while locked: the whole of it, as plain data.
//!
//! A [`Policy`] is a pure function of the configuration. Every list is sorted and free of
//! duplicates, so that the same configuration always compiles to the same bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::{Backend, Config, ForwardMode, TunnelKind};
pub use crate::config::{Exception, Inbound, LinkPattern, MessageShape, Protocol};

/// Ports at which names are asked for: DNS, DNS over TLS and QUIC, mDNS, LLMNR.
pub const NAME_SERVICE_PORTS: [u16; 4] = [53, 853, 5353, 5355];

/// Kinds of ports of an internal bridge that lead to containers and guests. Any other (a NIC has
/// none) makes a bridge a way out.
pub const GUEST_KINDS: [&str; 2] = ["veth", "tun"];

/// What may leave this machine, and what may come in, while the lock is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The firewall mark of the tunnel's outer packets.
    pub mark: u32,
    /// The tunnel, or `None` in the strictest lock.
    pub tunnel: Option<Tunnel>,
    /// Every server that any configured tunnel may talk to.
    pub servers: BTreeSet<Server>,
    /// Whether DHCPv4, DHCPv6 and neighbour discovery may run on links.
    pub dhcp: bool,
    /// Local networks, aggregated.
    pub lan: Vec<IpNet>,
    /// Addresses inside `lan` that may be asked for names.
    pub lan_dns: BTreeSet<IpAddr>,
    /// NTP servers.
    pub ntp: BTreeSet<IpAddr>,
    /// Services that named networks may reach.
    pub inbound: BTreeSet<Inbound>,
    /// Bridges that never leave the machine.
    pub internal: BTreeSet<LinkPattern>,
    /// Their guests' ports, spared by the egress guard.
    pub internal_ports: BTreeSet<LinkPattern>,
    /// Whether forwarded traffic may enter the tunnel.
    pub forward_into_tunnel: bool,
    /// Whether the `netdev` egress guard is wanted.
    pub egress_guard: bool,
    /// Whether policy rules send all unmarked traffic to our own routing table.
    pub routing_guard: bool,
}

/// The link that all traffic must take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name. A name alone proves nothing: see `kinds`.
    pub interface: String,
    /// The `IFLA_INFO_KIND` values that make a link of that name the tunnel.
    pub kinds: BTreeSet<&'static str>,
    /// The tunnel's own addresses: the only sources that may use it.
    pub addresses: BTreeSet<IpAddr>,
}

/// One address and port of a VPN server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Over what.
    pub protocol: Protocol,
    /// What its datagrams must look like.
    pub shape: MessageShape,
}

impl Tunnel {
    /// Whether a link of this name and kind is the tunnel's.
    pub fn is(&self, name: &str, kind: Option<&str>) -> bool {
        name == self.interface && kind.is_some_and(|kind| self.kinds.contains(kind))
    }
}

impl Policy {
    /// The lock for a configuration that cannot be used: nothing leaves but loopback.
    pub fn strictest() -> Self {
        Policy {
            mark: crate::config::DEFAULT_MARK,
            tunnel: None,
            servers: BTreeSet::new(),
            dhcp: false,
            lan: Vec::new(),
            lan_dns: BTreeSet::new(),
            ntp: BTreeSet::new(),
            inbound: BTreeSet::new(),
            internal: BTreeSet::new(),
            internal_ports: BTreeSet::new(),
            forward_into_tunnel: false,
            egress_guard: true,
            routing_guard: true,
        }
    }

    /// The policy that a configuration asks for.
    pub fn from_config(config: &Config) -> Self {
        let tunnel = &config.tunnel;
        let kinds = match (tunnel.kind, tunnel.backend) {
            (TunnelKind::Wireguard, Backend::Kernel) => BTreeSet::from(["wireguard"]),
            (TunnelKind::Wireguard, Backend::Userspace) => BTreeSet::from(["tun"]),
            (TunnelKind::Wireguard, Backend::Auto) | (TunnelKind::External, _) => {
                BTreeSet::from(["tun", "wireguard"])
            }
        };
        let servers = config
            .servers
            .iter()
            .flat_map(|server| {
                server.endpoints.iter().map(|&endpoint| Server {
                    endpoint,
                    protocol: server.protocol,
                    shape: server.message_shape,
                })
            })
            .collect();
        Policy {
            mark: tunnel.mark,
            tunnel: Some(Tunnel {
                interface: tunnel.interface.clone(),
                kinds,
                addresses: tunnel.addresses.iter().map(|net| net.addr()).collect(),
            }),
            servers,
            dhcp: config.allow.dhcp,
            lan: IpNet::aggregate(&config.allow.lan),
            lan_dns: config.allow.lan_dns.iter().copied().collect(),
            ntp: config.allow.ntp.iter().copied().collect(),
            inbound: config.allow.inbound.iter().cloned().collect(),
            internal: config.allow.internal.iter().cloned().collect(),
            internal_ports: config.allow.internal_ports.iter().cloned().collect(),
            forward_into_tunnel: config.forward.mode == ForwardMode::Tunnel,
            egress_guard: config.lock.egress_guard,
            routing_guard: tunnel.is_managed(),
        }
    }
    /// The policy that a configuration with these besides would ask for.
    pub fn with<'a>(&self, exceptions: impl IntoIterator<Item = &'a Exception>) -> Self {
        let mut policy = self.clone();
        for exception in exceptions {
            match exception {
                Exception::Lan(network) => policy.lan.push(*network),
                Exception::Ntp(address) => drop(policy.ntp.insert(*address)),
                Exception::Inbound(service) => drop(policy.inbound.insert(service.clone())),
            }
        }
        policy.lan = IpNet::aggregate(&policy.lan);
        policy
    }
}
