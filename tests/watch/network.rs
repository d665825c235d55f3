//! The ways out, as they are read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use killswitch::engine::{Network, TunnelLink};
use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Error, Host, Result};
use killswitch::policy::Tunnel;
use killswitch::watch::{Observer, Watch};
use nix::net::if_::if_nametoindex;

use crate::told::{run, until, within};

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).during(name)
}

/// A wire, both ends up.
fn wire(near: &str, far: &str) -> Result<()> {
    run(&format!("ip link add {near} type veth peer name {far}"))?;
    run(&format!("ip link set {far} up"))?;
    run(&format!("ip link set {near} up"))?;
    Ok(())
}

async fn observe(observer: &mut Observer, tunnel: Option<&Tunnel>) -> Result<Network> {
    Ok(observer.observe(tunnel).await.during("observe")?.network)
}

fn tunnel() -> Tunnel {
    Tunnel { interface: "wg0".into(), kinds: ["tun", "veth"].into(), addresses: [].into() }
}

/// The link and router of the way out over IPv4 after a change.
async fn after(observer: &mut Observer, line: &str) -> Result<Option<(u32, String)>> {
    run(line)?;
    let tunnel = tunnel();
    // Carrier comes and goes a moment later than `ip` returns.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let network = observe(observer, Some(&tunnel)).await?;
    let gateway = |it: Option<std::net::IpAddr>| it.map(|it| it.to_string()).unwrap_or_default();
    Ok(network.v4.map(|uplink| (uplink.link, gateway(uplink.gateway))))
}

pub fn the_best_way_out() -> Outcome {
    let host = Host::new("client")?;
    host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    within(&host, || async {
        let mut observer = Observer::open().during("observer")?;
        assert_eq!(observe(&mut observer, None).await?, Network::default());
        wire("eth0", "far0")?;
        wire("eth1", "far1")?;
        wire("wg0", "farw")?;
        for line in [
            "ip address add 192.0.2.2/24 dev eth0",
            "ip address add 192.0.2.3/24 dev eth0 preferred_lft 0",
            "ip address add 169.254.7.7/16 dev eth0",
            "ip address add 198.51.100.2/24 dev eth1",
            "ip address add 10.64.0.2/24 dev wg0",
            "ip address add 2001:db8::2/64 dev eth0 nodad",
            "ip route add default via 192.0.2.1 metric 50 table 77",
            "ip route add 0.0.0.0/1 via 192.0.2.1 metric 1",
            "ip route add default dev wg0 metric 1",
        ] {
            run(line)?;
        }
        let (eth0, eth1) = (index("eth0")?, index("eth1")?);
        let way = |link, router: &str| Some((link, router.to_owned()));
        let it = &mut observer;
        assert_eq!(after(it, "true").await?, None);
        let line = "ip route add 128.0.0.0/1 via 192.0.2.1 metric 1";
        assert_eq!(after(it, line).await?, way(eth0, "192.0.2.1"));
        let line = "ip route change 128.0.0.0/1 via 192.0.2.9 metric 1";
        assert_eq!(after(it, line).await?, None, "the halves lead apart");
        let line = "ip route add default via 192.0.2.1 metric 200";
        assert_eq!(after(it, line).await?, way(eth0, "192.0.2.1"));
        let line = "ip route add default via 198.51.100.1 metric 100";
        assert_eq!(after(it, line).await?, way(eth1, "198.51.100.1"));
        assert_eq!(after(it, "ip link set far1 down").await?, way(eth0, "192.0.2.1"));
        assert_eq!(after(it, "ip link set far1 up").await?, way(eth1, "198.51.100.1"));
        assert_eq!(after(it, "ip link set eth1 down").await?, way(eth0, "192.0.2.1"));
        run("ip link set eth1 up")?;
        let several = "ip route add default metric 10 nexthop via 198.51.100.1 dev eth1 \
                       nexthop via 192.0.2.1 dev eth0";
        assert_eq!(after(it, several).await?, way(eth1, "198.51.100.1"));
        assert_eq!(after(it, "ip link set far1 down").await?, way(eth0, "192.0.2.1"));
        run("ip route del default metric 10")?;
        run("ip -6 route add default via fe80::1 dev eth0")?;
        run("ip -6 route add unreachable default metric 5000")?;
        let network = observe(it, Some(&tunnel())).await?;
        let (v4, v6) = network.v4.zip(network.v6).ok_or_else(|| Error::new("a way is missing"))?;
        assert_eq!(v4.addresses, ["192.0.2.2".parse::<std::net::IpAddr>().during("address")?]);
        assert_eq!(v6.addresses, ["2001:db8::2".parse::<std::net::IpAddr>().during("address")?]);
        assert_eq!(v6.gateway.map(|it| it.to_string()).as_deref(), Some("fe80::1"));
        let line = "ip -4 route add default via inet6 fe80::7 dev eth0 metric 5";
        assert_eq!(after(it, line).await?, way(eth0, "fe80::7"));
        Ok(())
    })?;
    Ok(())
}

pub fn the_tunnels_link() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        let mut observer = Observer::open().during("observer")?;
        let tunnel = tunnel();
        for (line, expected) in [
            ("true", TunnelLink::Absent),
            ("ip link add wg0 type bridge", TunnelLink::Foreign),
            ("ip link set wg0 up", TunnelLink::Foreign),
            ("ip link del wg0", TunnelLink::Absent),
            ("ip link add wg0 type veth peer name far", TunnelLink::Down),
            ("ip link set wg0 up", TunnelLink::Up),
            ("ip link set wg0 name wg1", TunnelLink::Absent),
        ] {
            run(line)?;
            assert_eq!(observe(&mut observer, Some(&tunnel)).await?.tunnel, expected, "{line}");
        }
        Ok(())
    })?;
    Ok(())
}

/// Names that are not UTF-8: the link's event, its addresses and its routes are seen all the same
/// (threat 44).
pub fn links_with_strange_names() -> Outcome {
    let host = Host::new("client")?;
    within(&host, || async {
        let mut watch = Watch::open().during("watch")?;
        let mut observer = Observer::open().during("observer")?;
        let strange = OsStr::from_bytes(b"eth\xff\xfe");
        let ip = |words: &[&str]| {
            let words = words.iter().map(|&it| if it == "STRANGE" { strange } else { it.as_ref() });
            let status = Command::new("ip").args(words).status().during("ip")?;
            status.success().then_some(()).ok_or_else(|| Error::new("ip failed"))
        };
        observer.observe(None).await.during("observe")?;
        ip(&["link", "add", "STRANGE", "type", "veth", "peer", "name", "far"])?;
        until(&mut watch, |change| change.network).await?;
        assert!(observer.observe(None).await.during("observe")?.links_changed);
        ip(&["link", "set", "far", "up"])?;
        ip(&["link", "set", "STRANGE", "up"])?;
        ip(&["address", "add", "192.0.2.2/24", "dev", "STRANGE"])?;
        ip(&["route", "add", "default", "via", "192.0.2.1"])?;
        loop {
            let network = observe(&mut observer, None).await?;
            if network.v4.is_some_and(|uplink| uplink.addresses.len() == 1) {
                return Ok(());
            }
            watch.next().await.during("watch")?;
        }
    })?;
    Ok(())
}
