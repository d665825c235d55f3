//! The laboratory itself: what other tests rely on.

mod faults;

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::advertisement::{Advertiser, RaOptions};
use killswitch::lab::dhcp::{self, DhcpOptions, DhcpServer, Kind, Message};
use killswitch::lab::harness::{self, Outcome, eventually};
use killswitch::lab::traffic::Flood;
use killswitch::lab::{Capture, Expectation, Lab, Senders, namespaces, setup};

fn ping(lab: &Lab, address: &str) -> killswitch::lab::Result<()> {
    lab.client.command("ping", &["-c1", "-W10", address]).map(drop)
}

fn everybody_answers() -> Outcome {
    let lab = Lab::new()?;
    for address in ["192.168.1.1", "192.168.1.20", "198.51.100.7", "203.0.113.10", "1.1.1.1"] {
        ping(&lab, address)?;
    }
    for address in ["2001:db8:1::20", "2001:db8:b::7", "2001:db8:ffff::10", "2606:4700:4700::1111"]
    {
        ping(&lab, address)?;
    }
    Ok(())
}

fn a_tunnel_carries_pings_through_either_server() -> Outcome {
    let mut lab = Lab::new()?;
    lab.route_into_tunnel()?;
    for server in 0..2 {
        lab.start_server(server)?;
        let capture = Capture::start(&lab, Expectation::of(&lab))?;
        let tunnel = lab.client_tunnel(server)?;
        ping(&lab, "1.1.1.1")?;
        ping(&lab, "2606:4700:4700::1111")?;
        let report = capture.stop()?;
        if report.leaked.keys().any(|class| class.contains("1.1.1.1")) {
            return Err(report.summary(20).into());
        }
        if !report.allowed.contains_key("WireGuard to a server") {
            return Err("no WireGuard message was seen".into());
        }
        if tunnel.transfer()?.received == 0 {
            return Err("nothing was received".into());
        }
        tunnel.stop();
        if lab.client.has_link(TUNNEL_LINK)? {
            return Err("the link outlived its device".into());
        }
    }
    Ok(())
}

fn a_capture_sees_what_leaves() -> Outcome {
    let lab = Lab::new()?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    ping(&lab, "8.8.8.8")?;
    eventually("the ping is seen as a leak", || {
        Ok(capture.report().leaked.contains_key("ICMP type 8 192.168.1.50 -> 8.8.8.8"))
    })?;
    std::thread::sleep(Duration::from_millis(10));
    let report = capture.stop()?;
    if report.lost > 0 || report.frames.is_empty() {
        return Err(format!("lost {}, kept {}", report.lost, report.frames.len()).into());
    }
    Ok(())
}

/// One exchange from the client's port 68.
fn ask(lab: &Lab, kind: Kind, client: Ipv4Addr, to: Ipv4Addr) -> killswitch::lab::Result<Message> {
    use killswitch::lab::Context;
    lab.client
        .run(|| -> std::io::Result<Message> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
            nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::BindToDevice,
                &CLIENT_LINK.into(),
            )?;
            socket.set_broadcast(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            socket.send_to(
                &dhcp::request(kind, [1, 2, 3, 4], [2, 0, 0, 0, 0, 1], client),
                (to, 67),
            )?;
            let mut buffer = [0; 1500];
            let (length, _) = socket.recv_from(&mut buffer)?;
            Message::parse(&buffer[..length])
                .ok_or_else(|| std::io::Error::other("no DHCP message"))
        })?
        .during("DHCP")
}

fn dhcp_leases_and_renews() -> Outcome {
    let lab = Lab::new()?;
    let server = DhcpServer::start(&lab.router, DhcpOptions::default())?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    let offer = ask(&lab, Kind::Discover, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)?;
    assert_eq!((offer.kind, offer.yours), (Kind::Offer, CLIENT_V4));
    let lease = ask(&lab, Kind::Request, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)?;
    assert_eq!(lease.kind, Kind::Ack);
    let renewal = ask(&lab, Kind::Request, CLIENT_V4, ROUTER_V4)?;
    assert_eq!(renewal.kind, Kind::Ack);
    assert_eq!(server.heard(), [Kind::Discover, Kind::Request, Kind::Request]);
    assert_eq!(capture.stop()?.allowed.get("DHCP"), Some(&3));
    Ok(())
}

fn router_advertisements_configure_addresses_and_routes() -> Outcome {
    let lab = Lab::new()?;
    lab.client.sysctl("net/ipv6/conf/eth0/accept_ra", "1")?;
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0);
    let options = RaOptions { prefixes: vec![prefix], ..RaOptions::default() };
    let _advertiser = Advertiser::start(&lab.router, options)?;
    eventually("an address of the advertised prefix", || {
        let addresses = lab.client.command("ip", &["-6", "address", "show", "dev", CLIENT_LINK])?;
        Ok(addresses.contains("2001:db8:77:"))
    })?;
    let routes = lab.client.command("ip", &["-6", "route"])?;
    if !routes.contains("proto ra") {
        return Err(format!("no route from the router: {routes}").into());
    }
    Ok(())
}

fn senders_leak_without_a_lock() -> Outcome {
    let lab = Lab::new()?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    let senders = Senders::start(&lab, 1000)?;
    eventually("every sender that can be answered is", || {
        let silent = ["packet socket", "clear to a server"];
        let tallies = senders.tallies();
        Ok(tallies.len() > 20
            && tallies.iter().all(|(name, tally)| {
                tally.attempts > 0 && (tally.replies > 0 || silent.contains(name))
            }))
    })
    .map_err(|error| format!("{error}: {:?}", senders.tallies()))?;
    drop(senders);
    let report = capture.stop()?;
    for what in ["UDP 192.168.1.50 -> 1.1.1.1:53", "not WireGuard's shape", "ICMPv6 type 128"] {
        if !report.leaked.keys().any(|class| class.contains(what)) {
            return Err(format!("{what} was not seen: {}", report.summary(20)).into());
        }
    }
    Ok(())
}

fn a_flood_is_counted() -> Outcome {
    let lab = Lab::new()?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    let flood = Flood::start(&lab, (INTERNET_V4, 9).into(), Some(CLIENT_LINK))?;
    std::thread::sleep(Duration::from_secs(1));
    let flooded = flood.stop()?;
    let report = capture.stop()?;
    println!("sent {} seen {} lost {}", flooded.sent, report.leaked_total(), report.lost);
    if report.leaked_total() < 1000 {
        return Err(format!("{flooded:?}, seen {}", report.leaked_total()).into());
    }
    Ok(())
}

fn the_configuration_written_is_one_that_loads() -> Outcome {
    let lab = Lab::new()?;
    let file = setup::write_configuration(&lab, "\n[allow]\nlan = [\"192.168.1.0/24\"]\n")?;
    let config = killswitch::config::load(&file)?;
    assert_eq!(config.servers.len(), 2);
    assert_eq!(config.tunnel.mark, MARK);
    assert_eq!(config.tunnel.interface, TUNNEL_LINK);
    let public = config.servers[1].public_key.as_ref().map(ToString::to_string);
    assert_eq!(public, Some(lab.servers[1].keys.public_text()));
    // Written twice: a test may change its mind.
    setup::write_configuration(&lab, "")?;
    Ok(())
}

/// The guard that keeps a mistake from cutting this machine off.
fn hosts_are_apart_from_the_machine() -> Outcome {
    let here = namespaces::current()?;
    let lab = Lab::new()?;
    let there = lab.client.run(namespaces::current)??;
    let router = lab.router.run(namespaces::current)??;
    assert_ne!(here, there);
    assert_ne!(router, there);
    assert_eq!(lab.client.command("readlink", &["/proc/self/ns/net"])?.trim(), there);
    Ok(())
}

fn nothing_outlives_a_laboratory() -> Outcome {
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
    let before = threads()?;
    let mut lab = Lab::new()?;
    lab.start_server(0)?;
    let (tunnel, senders) = (lab.client_tunnel(0)?, Senders::start(&lab, 100)?);
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    if threads()? <= before {
        return Err("no thread was seen".into());
    }
    drop((tunnel, senders, capture, lab));
    assert_eq!(threads()?, before);
    Ok(())
}

fn main() -> std::process::ExitCode {
    harness::run(&[
        ("everybody_answers", everybody_answers),
        (
            "a_tunnel_carries_pings_through_either_server",
            a_tunnel_carries_pings_through_either_server,
        ),
        ("a_capture_sees_what_leaves", a_capture_sees_what_leaves),
        ("dhcp_leases_and_renews", dhcp_leases_and_renews),
        (
            "router_advertisements_configure_addresses_and_routes",
            router_advertisements_configure_addresses_and_routes,
        ),
        ("senders_leak_without_a_lock", senders_leak_without_a_lock),
        ("a_flood_is_counted", a_flood_is_counted),
        ("nothing_outlives_a_laboratory", nothing_outlives_a_laboratory),
        (
            "the_configuration_written_is_one_that_loads",
            the_configuration_written_is_one_that_loads,
        ),
        ("hosts_are_apart_from_the_machine", hosts_are_apart_from_the_machine),
        ("a_seed_gives_a_sequence", faults::a_seed_gives_a_sequence),
        ("each_does_what_it_says_and_is_undone", faults::each_does_what_it_says_and_is_undone),
        (
            "any_two_at_once_are_undone_in_either_order",
            faults::any_two_at_once_are_undone_in_either_order,
        ),
        ("leaks_are_seen_wherever_they_leave", faults::leaks_are_seen_wherever_they_leave),
        ("senders_go_on_through_all_of_them", faults::senders_go_on_through_all_of_them),
    ])
}
