//! Every address of the laboratory.
//!
//! ```text
//! neighbour .20 --\
//!                  br0 router --- isp --- server1, server2
//! client .50 eth0-/  .1            \----- internet
//!        192.168.1.0/24
//! ```
//!
//! Plain routing, no address translation in between: the client's own address is seen wherever a
//! packet leaks to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The client's link: the only way out of it.
pub const CLIENT_LINK: &str = "eth0";
/// The client's tunnel.
pub const TUNNEL_LINK: &str = "wg0";
/// The router's end of the client's wire.
pub const WIRE: &str = "wire0";
/// The router's bridge: the LAN.
pub const LAN_LINK: &str = "br0";

/// The LAN.
pub const LAN_V4: &str = "192.168.1.0/24";
/// The LAN.
pub const LAN_V6: &str = "2001:db8:1::/64";
/// The client on the LAN.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
/// The client on the LAN.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x50);
/// The home router: gateway, DHCP server, resolver.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The home router.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The home router on the link: the client's IPv6 gateway.
pub const ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The home router's hardware address, from which comes the one that it advertises itself by: the
/// same in every laboratory, so that a saved machine finds its router again.
pub const ROUTER_MAC: &str = "02:00:00:00:01:01";
/// Another machine on the LAN.
pub const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
/// Another machine on the LAN.
pub const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20);

/// The router's other bridge: the LAN of [`super::Fault::NewNetwork`].
pub const OTHER_LAN_LINK: &str = "br1";
/// The other LAN.
pub const OTHER_LAN_V4: &str = "192.168.77.0/24";
/// The other LAN.
pub const OTHER_LAN_V6: &str = "2001:db8:77::/64";
/// The client on the other LAN.
pub const OTHER_CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 123);
/// The client on the other LAN.
pub const OTHER_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x123);
/// The other LAN's gateway.
pub const OTHER_ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);
/// Its hardware address there.
pub const OTHER_ROUTER_MAC: &str = "02:00:00:00:02:01";
/// The other LAN's gateway on the link.
pub const OTHER_ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);

/// Where the VPN servers listen.
pub const SERVER_PORT: u16 = 51820;
/// The first VPN server.
pub const SERVER1_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The first VPN server.
pub const SERVER1_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 7);
/// The second VPN server.
pub const SERVER2_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 135);
/// The second VPN server.
pub const SERVER2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 7);

/// The client inside the tunnel.
pub const TUNNEL_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// The client inside the tunnel.
pub const TUNNEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 2);
/// Either server inside the tunnel.
pub const TUNNEL_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// Either server inside the tunnel.
pub const TUNNEL_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 1);

/// A host on the Internet.
pub const INTERNET_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// A host on the Internet.
pub const INTERNET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10);

/// All addresses of the Internet host: its own and those of well-known resolvers.
pub const INTERNET: [IpAddr; 7] = [
    IpAddr::V4(INTERNET_V4),
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V6(INTERNET_V6),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
];

/// Where the Internet host and the other machines echo, over UDP and TCP alike.
pub const ECHO_PORTS: [u16; 10] = [7, 53, 80, 123, 443, 853, 3478, 4433, 8080, 51820];

/// The mark of the tunnel's outer packets, also the number of its routing table.
pub const MARK: u32 = 0x6b73;
