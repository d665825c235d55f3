//! Each fault does what it says, and nothing of it stays.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::faults::{self, Fault};
use killswitch::lab::harness::{Failed, Outcome, eventually};
use killswitch::lab::{Capture, Expectation, Host, Lab, Result, Senders};

fn reachable(lab: &Lab) -> Result<bool> {
    for address in ["203.0.113.10", "2001:db8:ffff::10"] {
        if !lab.client.output("ping", &["-c1", "-W2", address])?.status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Nothing, if what is asked for is not there.
fn says(host: &Host, command: &str) -> Result<String> {
    let words: Vec<&str> = command.split(' ').collect();
    let output = host.output(words[0], &words[1..])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the client hears of a datagram to a server that is no WireGuard message.
fn answer_of(lab: &Lab, server: usize) -> Result<ErrorKind> {
    let endpoint = lab.servers[server].endpoint_v4;
    let ask = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect(endpoint)?;
        socket.send(b"are you there")?;
        socket.recv(&mut [0; 16])
    };
    Ok(lab.client.run(ask)?.err().map_or(ErrorKind::Other, |error| error.kind()))
}

/// What a fault may take away, so that it can be seen to.
fn set_up(lab: &mut Lab) -> Result<()> {
    lab.start_server(0)?;
    lab.start_server(1)?;
    // A tun link without a reader stands for the tunnel.
    lab.client.ip(&format!(
        "tuntap add dev {TUNNEL_LINK} mode tun
         link set {TUNNEL_LINK} up
         route add unreachable default metric 4294967295 table {MARK}"
    ))?;
    for family in ["-4", "-6"] {
        for preference in ["27500", "27599", "27600"] {
            let words = [family, "rule", "add", "pref", preference, "lookup", "main"];
            lab.client.command("ip", &words)?;
        }
    }
    lab.client.feed("nft", &["-f", "-"], "table inet killswitch {}\ntable inet other {}\n")
}

fn happened(lab: &Lab, fault: Fault) -> Result<bool> {
    let client = &lab.client;
    let both = |command: &str| -> Result<String> {
        Ok(says(client, &format!("ip -4 {command}"))? + &says(client, &format!("ip -6 {command}"))?)
    };
    Ok(match fault {
        Fault::LinkDown => !says(client, "ip link show eth0")?.contains(",UP"),
        Fault::CableOut => says(client, "ip link show eth0")?.contains("NO-CARRIER"),
        Fault::NewNetwork => {
            let addresses = says(client, "ip address show dev eth0")?;
            let routes = both("route show default")?;
            let all = |words: &[&str], text: &str| words.iter().all(|word| text.contains(word));
            all(&["192.168.77.123/24", "2001:db8:77::123/64"], &addresses)
                && !addresses.contains("192.168.1.50")
                && !addresses.contains("2001:db8:1::50")
                && all(&["via 192.168.77.254 ", "via fe80::77 "], &routes)
                && routes.lines().count() == 2
                && reachable(lab)?
        }
        Fault::NoDefaultRoute => both("route show default")?.trim().is_empty(),
        Fault::ServerRefuses(server) => answer_of(lab, server)? == ErrorKind::ConnectionRefused,
        Fault::ServerSilent(server) => {
            lab.servers[server].running().is_none()
                && answer_of(lab, server)? == ErrorKind::WouldBlock
        }
        Fault::RulesDeleted => {
            let rules = both("rule")?;
            !rules.contains("27500:") && !rules.contains("27599:") && rules.contains("27600:")
        }
        Fault::RulesFlushed => both("rule")?.lines().all(|line| line.starts_with("0:")),
        Fault::RoutesDeleted => !both("route show table all")?.contains(&MARK.to_string()),
        Fault::RulesetFlushed => says(client, "nft list tables")?.is_empty(),
        Fault::TableDeleted => says(client, "nft list tables")?.trim() == "table inet other",
        Fault::TunnelDeleted => !client.has_link(TUNNEL_LINK)?,
        Fault::LookAlikeVeth => says(client, "ip -d link show wg0")?.contains(" veth "),
        Fault::LookAlikeTun => {
            says(client, "ip -d link show wg0")?.contains("tun type tun")
                && both(&format!("route show table {MARK}"))?.contains("dev wg0")
        }
        Fault::LookAlikeNic => {
            !client.has_link(CLIENT_LINK)?
                && says(client, "ip address show dev wg0")?.contains("192.168.1.50")
        }
    })
}

pub fn each_does_what_it_says_and_is_undone() -> Outcome {
    for fault in faults::ALL {
        let mut lab = Lab::new()?;
        set_up(&mut lab)?;
        if happened(&lab, fault)? {
            return Err(format!("{fault} is seen before it happened").into());
        }
        fault.apply(&mut lab).map_err(|error| format!("{fault}: {error}"))?;
        eventually(fault.name(), || happened(&lab, fault))?;
        fault.undo(&mut lab).map_err(|error| format!("undoing {fault}: {error}"))?;
        eventually(&format!("the Internet after {fault}"), || reachable(&lab))?;
        if fault.lasts() && happened(&lab, fault)? {
            return Err(format!("{fault} is seen after it was undone").into());
        }
        // Twice is as once.
        fault.undo(&mut lab)?;
    }
    Ok(())
}

pub fn any_two_at_once_are_undone_in_either_order() -> Outcome {
    let mut lab = Lab::new()?;
    for (number, (one, other)) in faults::pairs().into_iter().enumerate() {
        let both = || format!("{one} with {other}");
        let words = |error| format!("{}: {error}", both());
        one.apply(&mut lab).map_err(words)?;
        other.apply(&mut lab).map_err(words)?;
        let order = if number % 2 == 0 { [one, other] } else { [other, one] };
        for fault in order {
            fault.undo(&mut lab).map_err(words)?;
        }
        eventually(&format!("the Internet after {}", both()), || reachable(&lab))?;
    }
    Ok(())
}

/// Of every address that the client has had, and of every link.
pub fn leaks_are_seen_wherever_they_leave() -> Outcome {
    let mut lab = Lab::with_servers()?;
    let senders = Senders::start(&lab, 1000)?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    let seen = |what: &'static str| {
        eventually(what, || Ok(capture.report().leaked.keys().any(|class| class.contains(what))))
    };
    Fault::NewNetwork.apply(&mut lab)?;
    seen("192.168.77.123 -> 1.1.1.1:53")?;
    seen("2001:db8:77::123 -> ")?;
    Fault::NewNetwork.undo(&mut lab)?;
    lab.route_into_tunnel()?;
    Fault::LookAlikeVeth.apply(&mut lab)?;
    // From the tunnel's own address, in clear: only the look-alike sends so.
    seen("protocol 17 from the tunnel's own address, 10.64.0.2 -> 1.1.1.1")?;
    seen("from the tunnel's own address, fd00:64::2 -> ")?;
    Fault::LookAlikeVeth.undo(&mut lab)?;
    drop(senders);
    capture.stop()?;
    Ok(())
}

pub fn senders_go_on_through_all_of_them() -> Outcome {
    let mut lab = Lab::with_servers()?;
    let senders = Senders::start(&lab, 500)?;
    for fault in faults::sequence(7, 20) {
        fault.apply(&mut lab)?;
        let before = senders.total();
        eventually("sending during a fault", || Ok(senders.total().since(before).attempts > 100))?;
        fault.undo(&mut lab)?;
        let before = senders.tallies();
        eventually(&format!("answers after {fault}"), || {
            let now = senders.tallies();
            let answered = |name: &str| {
                let of = |tallies: &killswitch::lab::traffic::Tallies| {
                    tallies.get(name).copied().unwrap_or_default().replies
                };
                of(&now) > of(&before)
            };
            Ok(["udp4", "udp6", "tcp4", "tcp6", "icmp4 bound", "icmp6 bound"]
                .into_iter()
                .all(answered))
        })?;
    }
    Ok(())
}

pub fn a_seed_gives_a_sequence() -> Outcome {
    assert_eq!(faults::sequence(1, 20), faults::sequence(1, 20));
    assert_ne!(faults::sequence(1, 20), faults::sequence(2, 20));
    assert_eq!(faults::sequence(1, 20)[..5], faults::sequence(1, 5)[..]);
    let mut names: Vec<&str> = faults::ALL.iter().map(|fault| fault.name()).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert_eq!(faults::pairs().len(), all * (all - 1) / 2);
    let many = faults::sequence(3, 1000);
    let missing: Vec<_> = faults::ALL.iter().filter(|fault| !many.contains(fault)).collect();
    if !missing.is_empty() {
        return Err(Failed::from(format!("never drawn: {missing:?}")));
    }
    Ok(())
}
