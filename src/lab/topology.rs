use std::net::{IpAddr, SocketAddr};

use super::addresses::*;
use super::error::{Context, Result};
use super::faults::Conditions;
use super::host::Host;
use super::services::Echo;
use super::wireguard::{KeyPair, Peer, Settings, Wireguard};

/// A home network, an Internet and two VPN servers, all inside this process. Gone when dropped.
pub struct Lab {
    /// The machine under test.
    pub client: Host,
    /// The home router: see [`super::dhcp`] and [`super::advertisement`] for what it can serve.
    pub router: Host,
    /// Another machine on the LAN.
    pub neighbour: Host,
    /// Between the router and the rest.
    pub isp: Host,
    /// A host with the addresses of [`INTERNET`].
    pub internet: Host,
    /// The VPN servers, not yet running: see [`Lab::start_server`].
    pub servers: [VpnServer; 2],
    /// The client's WireGuard keys.
    pub client_keys: KeyPair,
    /// What the Internet host hears.
    pub echo: Echo,
    /// The far end of links that take the tunnel's name ([`super::Fault::LookAlikeVeth`]).
    pub trap: Host,
    pub(super) conditions: Conditions,
    others: Vec<Echo>,
}

/// A machine that can run a WireGuard server.
pub struct VpnServer {
    /// Its machine.
    pub host: Host,
    /// Its keys.
    pub keys: KeyPair,
    /// Its IPv4 endpoint.
    pub endpoint_v4: SocketAddr,
    /// Its IPv6 endpoint.
    pub endpoint_v6: SocketAddr,
    running: Option<Wireguard>,
}

impl Lab {
    /// Builds the network; nothing sends yet. Takes a fraction of a second.
    ///
    /// # Errors
    /// The words of `ip`; or outside of private namespaces.
    pub fn new() -> Result<Self> {
        let client = Host::new("client")?;
        let router = Host::new("router")?;
        let neighbour = Host::new("neighbour")?;
        let isp = Host::new("isp")?;
        let internet = Host::new("internet")?;
        let server1 = Host::new("server1")?;
        let server2 = Host::new("server2")?;
        let trap = Host::new("trap")?;
        for host in [&client, &router, &neighbour, &isp, &internet, &server1, &server2] {
            // Addresses are usable at once instead of after a second.
            host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            host.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        }
        for host in [&router, &isp, &server1, &server2] {
            host.sysctl("net/ipv4/ip_forward", "1")?;
            host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        set_up_isp(&isp, &router, &internet, &server1, &server2)?;
        set_up_router(&router, &client, &neighbour)?;
        set_up_ends(&client, &neighbour, &internet)?;
        for (host, v4, v6) in
            [(&server1, SERVER1_V4, SERVER1_V6), (&server2, SERVER2_V4, SERVER2_V6)]
        {
            set_up_server(host, v4.into(), v6.into())?;
        }
        let echo = Echo::start(&internet, &INTERNET, &ECHO_PORTS)?;
        // A server answers in clear too, so that traffic in clear to it would be noticed.
        let clear: Vec<u16> = ECHO_PORTS.into_iter().filter(|&port| port != SERVER_PORT).collect();
        let others = vec![
            Echo::start(&router, &[ROUTER_V4.into(), ROUTER_V6.into()], &ECHO_PORTS)?,
            Echo::start(&neighbour, &[NEIGHBOUR_V4.into(), NEIGHBOUR_V6.into()], &ECHO_PORTS)?,
            Echo::start(&server1, &[SERVER1_V4.into(), SERVER1_V6.into()], &clear)?,
            Echo::start(&server2, &[SERVER2_V4.into(), SERVER2_V6.into()], &clear)?,
        ];
        let servers = [
            VpnServer::new(server1, SERVER1_V4.into(), SERVER1_V6.into())?,
            VpnServer::new(server2, SERVER2_V4.into(), SERVER2_V6.into())?,
        ];
        let client_keys = KeyPair::generate()?;
        let conditions = Conditions::new(index(&client, CLIENT_LINK)?);
        Ok(Lab {
            client,
            router,
            neighbour,
            isp,
            internet,
            servers,
            client_keys,
            echo,
            trap,
            conditions,
            others,
        })
    }

    pub(super) fn client_link_index(&self, name: &str) -> Result<u32> {
        index(&self.client, name)
    }

    /// As [`Lab::new`], and both servers run.
    ///
    /// # Errors
    /// Those of [`Lab::new`] and [`Lab::start_server`].
    pub fn with_servers() -> Result<Self> {
        let mut lab = Self::new()?;
        lab.start_server(0)?;
        lab.start_server(1)?;
        Ok(lab)
    }

    /// Starts server 0 or 1, if it is not running.
    ///
    /// # Errors
    /// Why not; see [`super::namespaces::tun_device`].
    pub fn start_server(&mut self, server: usize) -> Result<()> {
        let client = self.client_keys.public;
        self.servers[server].start(client)
    }

    /// Stops server 0 or 1: its tunnel link goes, and its port is closed.
    pub fn stop_server(&mut self, server: usize) {
        self.servers[server].running = None;
    }

    /// Brings up the client's tunnel to a running server over IPv4, as the daemon will: a link
    /// [`TUNNEL_LINK`], marked outer packets, a default route in table [`MARK`]. What leads
    /// traffic to that table is the lock's policy rule, or [`Lab::route_into_tunnel`].
    ///
    /// # Errors
    /// Why not.
    pub fn client_tunnel(&self, server: usize) -> Result<Wireguard> {
        self.client_tunnel_to(server, self.servers[server].endpoint_v4)
    }

    /// As [`Lab::client_tunnel`], to the endpoint given.
    ///
    /// # Errors
    /// Why not.
    pub fn client_tunnel_to(&self, server: usize, endpoint: SocketAddr) -> Result<Wireguard> {
        let settings = Settings {
            link: TUNNEL_LINK.into(),
            private_key: self.client_keys.private,
            listen_port: 0,
            mark: Some(MARK),
            peer: Peer {
                public_key: self.servers[server].keys.public,
                endpoint: Some(endpoint),
                allowed: vec!["0.0.0.0/0".into(), "::/0".into()],
                keepalive: Some(25),
            },
        };
        let tunnel = Wireguard::start(&self.client, settings)?;
        self.client.ip(&format!(
            "address add {TUNNEL_V4}/32 dev {TUNNEL_LINK}
             address add {TUNNEL_V6}/128 dev {TUNNEL_LINK} nodad
             link set {TUNNEL_LINK} mtu 1420 up
             route add default dev {TUNNEL_LINK} table {MARK} proto kernel
             route add ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
        ))?;
        Ok(tunnel)
    }

    /// The policy rules that lead unmarked traffic into the tunnel: what a lock would do, for
    /// tests without one.
    ///
    /// # Errors
    /// The words of `ip`.
    pub fn route_into_tunnel(&self) -> Result<()> {
        let mark = MARK.to_string();
        for family in ["-4", "-6"] {
            self.client.command(
                "ip",
                &[family, "rule", "add", "pref", "100", "not", "fwmark", &mark, "lookup", &mark],
            )?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All at once, instead of one after the other.
        self.echo.request_stop();
        self.others.iter().for_each(Echo::request_stop);
    }
}

impl VpnServer {
    fn new(host: Host, v4: IpAddr, v6: IpAddr) -> Result<Self> {
        Ok(VpnServer {
            host,
            keys: KeyPair::generate()?,
            endpoint_v4: SocketAddr::new(v4, SERVER_PORT),
            endpoint_v6: SocketAddr::new(v6, SERVER_PORT),
            running: None,
        })
    }

    /// Its WireGuard while it runs.
    pub fn running(&self) -> Option<&Wireguard> {
        self.running.as_ref()
    }

    /// From now on it neither hears nor says anything at its port.
    ///
    /// # Errors
    /// The words of `nft`.
    pub fn silence(&self) -> Result<()> {
        self.drop_at_port("")
    }

    /// From now on handshakes reach it, and no data.
    ///
    /// # Errors
    /// The words of `nft`.
    pub fn swallow(&self) -> Result<()> {
        /// A message's first byte (WireGuard's whitepaper, 5.4.6).
        const DATA: u8 = 4;
        self.drop_at_port(&format!("@th,64,8 {DATA}"))
    }

    fn drop_at_port(&self, what: &str) -> Result<()> {
        self.host.feed(
            "nft",
            &["-f", "-"],
            &format!(
                "table inet silence
                delete table inet silence
                table inet silence {{
                    chain in {{
                        type filter hook prerouting priority -500
                        udp dport {SERVER_PORT} {what} drop
                    }}
                    chain out {{
                        type filter hook output priority -500
                        udp sport {SERVER_PORT} {what} drop
                    }}
                }}"
            ),
        )
    }

    /// Ends [`VpnServer::silence`] and [`VpnServer::swallow`]; no error if there is none.
    ///
    /// # Errors
    /// If `nft` cannot be started.
    pub fn end_silence(&self) -> Result<()> {
        self.host.output("nft", &["delete", "table", "inet", "silence"]).map(drop)
    }

    fn start(&mut self, client: [u8; 32]) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let settings = Settings {
            link: TUNNEL_LINK.into(),
            private_key: self.keys.private,
            listen_port: SERVER_PORT,
            mark: None,
            peer: Peer {
                public_key: client,
                endpoint: None,
                allowed: vec![format!("{TUNNEL_V4}/32"), format!("{TUNNEL_V6}/128")],
                keepalive: None,
            },
        };
        let running = Wireguard::start(&self.host, settings)?;
        self.host.ip(&format!(
            "address add {TUNNEL_GATEWAY_V4}/24 dev {TUNNEL_LINK}
             address add {TUNNEL_GATEWAY_V6}/64 dev {TUNNEL_LINK} nodad
             link set {TUNNEL_LINK} mtu 1420 up"
        ))?;
        self.running = Some(running);
        Ok(())
    }
}

fn index(host: &Host, link: &str) -> Result<u32> {
    host.run(|| nix::net::if_::if_nametoindex(link))?.during(link)
}

fn set_up_isp(
    isp: &Host,
    router: &Host,
    internet: &Host,
    server1: &Host,
    server2: &Host,
) -> Result<()> {
    // Two ends with the same index in their namespaces would wait a second for their carrier:
    // linkwatch_urgent_event() of net/core/link_watch.c takes them for a physical link.
    isp.ip(&format!(
        "link add home index 100 type veth peer name wan0 netns {router}
         link add net index 101 type veth peer name eth0 netns {internet}
         link add vpn1 index 102 type veth peer name eth0 netns {server1}
         link add vpn2 index 103 type veth peer name eth0 netns {server2}
         address add 100.64.7.1/30 dev home
         address add 2001:db8:0:7::1/64 dev home nodad
         address add 203.0.113.1/24 dev net
         address add 2001:db8:ffff::1/64 dev net nodad
         address add 198.51.100.1/25 dev vpn1
         address add 2001:db8:a::1/64 dev vpn1 nodad
         address add 198.51.100.129/25 dev vpn2
         address add 2001:db8:b::1/64 dev vpn2 nodad
         link set home up
         link set net up
         link set vpn1 up
         link set vpn2 up
         route add {LAN_V4} via 100.64.7.2
         route add {LAN_V6} via 2001:db8:0:7::2
         route add {OTHER_LAN_V4} via 100.64.7.2
         route add {OTHER_LAN_V6} via 2001:db8:0:7::2
         route add default via {INTERNET_V4}
         route add ::/0 via {INTERNET_V6}",
        router = router.path(),
        internet = internet.path(),
        server1 = server1.path(),
        server2 = server2.path(),
    ))
}

fn set_up_router(router: &Host, client: &Host, neighbour: &Host) -> Result<()> {
    router.ip(&format!(
        "address add 100.64.7.2/30 dev wan0
         address add 2001:db8:0:7::2/64 dev wan0 nodad
         link set wan0 up
         route add default via 100.64.7.1
         route add ::/0 via 2001:db8:0:7::1
         link add {LAN_LINK} address {ROUTER_MAC} type bridge forward_delay 0 mcast_snooping 0
         link add {WIRE} index 100 type veth peer name {CLIENT_LINK} netns {client}
         link add wire1 index 101 type veth peer name eth0 netns {neighbour}
         link set {WIRE} master {LAN_LINK} up
         link set wire1 master {LAN_LINK} up
         address add {ROUTER_V4}/24 dev {LAN_LINK}
         address add {ROUTER_V6}/64 dev {LAN_LINK} nodad
         address add {ROUTER_LINK_LOCAL}/64 dev {LAN_LINK} nodad
         link set {LAN_LINK} up
         link add {OTHER_LAN_LINK} address {OTHER_ROUTER_MAC} type bridge forward_delay 0 mcast_snooping 0
         address add {OTHER_ROUTER_V4}/24 dev {OTHER_LAN_LINK}
         address add 2001:db8:77::1/64 dev {OTHER_LAN_LINK} nodad
         address add {OTHER_ROUTER_LINK_LOCAL}/64 dev {OTHER_LAN_LINK} nodad
         link set {OTHER_LAN_LINK} up",
        client = client.path(),
        neighbour = neighbour.path(),
    ))
}

fn set_up_ends(client: &Host, neighbour: &Host, internet: &Host) -> Result<()> {
    for (host, v4, v6) in [(client, CLIENT_V4, CLIENT_V6), (neighbour, NEIGHBOUR_V4, NEIGHBOUR_V6)]
    {
        host.ip(&format!(
            "address add {v4}/24 dev eth0
             address add {v6}/64 dev eth0 nodad
             link set eth0 up
             route add default via {ROUTER_V4}
             route add ::/0 via {ROUTER_LINK_LOCAL} dev eth0"
        ))?;
    }
    let mut commands = format!(
        "address add {INTERNET_V4}/24 dev eth0
         address add {INTERNET_V6}/64 dev eth0 nodad
         link set eth0 up
         route add default via 203.0.113.1
         route add ::/0 via 2001:db8:ffff::1\n"
    );
    for address in INTERNET {
        if address != IpAddr::V4(INTERNET_V4) && address != IpAddr::V6(INTERNET_V6) {
            // Otherwise IPv6 ones may not be usable yet when the services begin.
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            commands.push_str(&format!("address add {address} dev lo {nodad}\n"));
        }
    }
    internet.ip(&commands)
}

fn set_up_server(server: &Host, v4: IpAddr, v6: IpAddr) -> Result<()> {
    let (gateway_v4, gateway_v6) = if v4 == IpAddr::V4(SERVER1_V4) {
        ("198.51.100.1", "2001:db8:a::1")
    } else {
        ("198.51.100.129", "2001:db8:b::1")
    };
    server.ip(&format!(
        "address add {v4}/25 dev eth0
         address add {v6}/64 dev eth0 nodad
         link set eth0 up
         route add default via {gateway_v4}
         route add ::/0 via {gateway_v6}"
    ))?;
    // As VPN servers do: the client has the same address at either, and answers find the way.
    server.feed(
        "nft",
        &["-f", "-"],
        &format!(
            "table inet exit {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat
                    oifname eth0 ip saddr {TUNNEL_V4}/24 masquerade
                    oifname eth0 ip6 saddr {TUNNEL_V6}/64 masquerade
                }}
            }}"
        ),
    )
}
