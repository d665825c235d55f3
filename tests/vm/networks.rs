//! Networks to plug a machine into, honest and hostile: a LAN of the laboratory's router, and what it
//! tells.

use std::net::{Ipv4Addr, Ipv6Addr};

use killswitch::lab::addresses::*;
use killswitch::lab::advertisement::RaOptions;
use killswitch::lab::dhcp::DhcpOptions;
use killswitch::lab::{Lab, Result};

/// The default: home.
#[derive(Debug, Clone, Default)]
pub struct Network {
    pub leases: DhcpOptions,
    pub router: RaOptions,
}

impl Network {
    /// Another place: other addresses, other gateways.
    pub fn elsewhere() -> Self {
        Network {
            leases: DhcpOptions {
                link: OTHER_LAN_LINK,
                server: OTHER_ROUTER_V4,
                address: OTHER_CLIENT_V4,
                gateway: OTHER_ROUTER_V4,
                dns: OTHER_ROUTER_V4,
                ..DhcpOptions::default()
            },
            router: RaOptions {
                link: OTHER_LAN_LINK,
                prefixes: vec![Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0)],
                dns: None,
                ..RaOptions::default()
            },
        }
    }

    /// TunnelVision (CVE-2024-3661), to the whole Internet and to one address.
    pub fn with_hostile_routes() -> Self {
        let [half, other] = [[0, 0, 0, 0], [128, 0, 0, 0]].map(Ipv4Addr::from);
        let one = Ipv4Addr::new(1, 1, 1, 1);
        let routes = vec![(half, 1, ROUTER_V4), (other, 1, ROUTER_V4), (one, 32, ROUTER_V4)];
        Network { leases: DhcpOptions { routes, ..DhcpOptions::default() }, ..Self::default() }
    }

    /// A foreign resolver, and packets so small that a tunnel's do not fit.
    pub fn with_hostile_resolver() -> Self {
        let dns = Ipv4Addr::new(8, 8, 8, 8);
        let leases = DhcpOptions { dns, mtu: Some(576), ..DhcpOptions::default() };
        Network { leases, ..Self::default() }
    }

    /// TunnelVision's sister for IPv6.
    pub fn with_hostile_router() -> Self {
        let router = RaOptions {
            routes: vec![(CLAIMED_V6, 128)],
            dns: Some(INTERNET_V6),
            ..RaOptions::default()
        };
        Network { router, ..Self::default() }
    }

    /// LocalNet (CVE-2023-36672): what the senders want to reach is said to be on the link.
    /// [`claim`] has it there.
    pub fn with_public_prefixes() -> Self {
        let elsewhere = Self::elsewhere();
        let leases = DhcpOptions {
            server: CLAIMED_V4,
            gateway: CLAIMED_V4,
            address: GUEST_THERE,
            ..elsewhere.leases
        };
        let mut router = elsewhere.router;
        router.prefixes.push(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0));
        Network { leases, router }
    }
}

/// Two of [`INTERNET`], which the other LAN's router takes for itself.
const CLAIMED_V4: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const CLAIMED_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);
const GUEST_THERE: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 50);

/// Begins, or ends (`delete`), that the other LAN's router answers for them; a VPN server's answers
/// find the way to it.
///
/// # Errors
/// The words of `ip`.
pub fn claim(lab: &Lab, what: &str) -> Result<()> {
    lab.router.ip(&format!(
        "address {what} {CLAIMED_V4}/24 dev {OTHER_LAN_LINK}
         address {what} {CLAIMED_V6}/64 dev {OTHER_LAN_LINK} nodad"
    ))?;
    lab.isp.ip(&format!("route {what} {GUEST_THERE}/32 via 100.64.7.2"))
}
