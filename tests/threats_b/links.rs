//! Links that are renamed, replugged, absent, or called something hostile.

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::link::PacketSocket;
use killswitch::lab::{Capture, Error, Lab, Result};

use crate::common::{BLOCKED, LockedLab, words};
use crate::shot::{Shot, fire, hold, hold_these, leak, naive_lock, nft, no_naive_lock};

fn sockets() -> Vec<Shot> {
    vec![
        Shot::udp("udp4", "1.1.1.1:53"),
        Shot::udp("udp6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("1.1.1.1:443"),
    ]
}

/// Renames the client's link; a link that is up cannot be renamed everywhere, so its addresses and
/// routes are made anew.
fn rename(lab: &Lab, from: &str, to: &str) -> Result<()> {
    lab.client.ip(&format!(
        "link set {from} down
         link set {from} name {to}
         link set {to} up
         route replace default via {ROUTER_V4} dev {to}
         address replace {CLIENT_V6}/64 dev {to} nodad
         route replace ::/0 via {ROUTER_LINK_LOCAL} dev {to}"
    ))?;
    eventually("the router answers", || {
        let pings = ["-c1", "-W1", "192.168.1.1"];
        Ok(lab.client.output("ping", &pings)?.status.success()
            || lab.client.command("ip", &["neigh"])?.contains("192.168.1.1 dev"))
    })
}

/// The physical link takes the vanished tunnel's name, and its address besides.
pub fn t37_link_renamed_to_the_tunnel() -> Outcome {
    let mut shots = sockets();
    shots.push(Shot::udp("tunnel address", "1.1.1.1:53").from("10.64.0.2:0"));
    shots.push(Shot::frame("frame", "1.1.1.1:53").through(TUNNEL_LINK));
    let take_name = |lab: &Lab| -> Result<()> {
        rename(lab, CLIENT_LINK, TUNNEL_LINK)?;
        lab.client.ip(&format!("address add {TUNNEL_V4}/32 dev {TUNNEL_LINK}"))
    };
    let it = LockedLab::new()?;
    take_name(&it.lab)?;
    naive_lock(&it.lab, 0, "oifname \"wg0\" accept")?;
    leak(&it, &shots)?;
    no_naive_lock(&it.lab)?;
    it.lock()?;
    hold(&it, &shots)?;

    let it = LockedLab::new()?;
    it.lock()?;
    hold(&it, &sockets())?;
    take_name(&it.lab)?;
    hold(&it, &shots)?;
    it.expect_status(BLOCKED)?;
    Ok(())
}

/// Programs that look a link up by name find the physical one.
pub fn t38_alternative_name() -> Outcome {
    let it = LockedLab::new()?;
    it.lab.client.ip(&format!(
        "link property add dev {CLIENT_LINK} altname {TUNNEL_LINK}
         route add 1.1.1.1 via {ROUTER_V4} dev {TUNNEL_LINK}"
    ))?;
    naive_lock(&it.lab, 0, "oifname \"wg0\" accept")?;
    hold(&it, &sockets())?;
    no_naive_lock(&it.lab)?;
    let mut shots = sockets();
    shots.push(Shot::udp("bound", "8.8.8.8:53").through(TUNNEL_LINK));
    leak(&it, &shots)?;
    it.lock()?;
    hold(&it, &shots)?;
    it.expect_status(BLOCKED)?;
    // It also keeps the tunnel from coming up: nothing leaves, but somebody must be told why.
    let refused = it.lab.client.output("ip", &["link", "add", TUNNEL_LINK, "type", "bridge"])?;
    if refused.status.success() || !words(&refused).contains("File exists") {
        return Err(format!("a link took a name that is taken: {}", words(&refused)).into());
    }
    Ok(())
}

pub fn t39_renamed_link_keeps_its_guard() -> Outcome {
    let frames =
        [Shot::frame("frame4", "1.1.1.1:53"), Shot::frame("frame6", "[2606:4700:4700::1111]:53")];
    let renamed = frames.clone().map(|frame| frame.through("lan7"));
    let it = LockedLab::new()?;
    leak(&it, &frames)?;
    // A chain on the link by its name holds, until the link has another.
    nft(
        &it.lab,
        "table netdev naive { chain egress {
            type filter hook egress device \"eth0\" priority 0; policy accept;
            udp dport 53 drop
        }
        }",
    )?;
    hold_these(&it, &frames)?;
    rename(&it.lab, CLIENT_LINK, "lan7")?;
    leak(&it, &renamed)?;
    rename(&it.lab, "lan7", CLIENT_LINK)?;
    nft(&it.lab, "delete table netdev naive")?;
    it.lock()?;
    hold(&it, &frames)?;
    rename(&it.lab, CLIENT_LINK, "lan7")?;
    hold(&it, &renamed)?;
    hold(&it, &sockets())?;
    it.expect_status(BLOCKED)?;
    Ok(())
}

/// An nft that does not know the wildcard loads it as the name of a link that is not there: taken,
/// and hooks nothing. (An nft that knows it, 1.1.6 and later, would hold here; then there is nothing
/// to show.)
pub fn t42_wildcard_of_an_old_nft() -> Outcome {
    let frames = [Shot::frame("frame4", "1.1.1.1:53")];
    let it = LockedLab::new()?;
    nft(
        &it.lab,
        "table netdev naive { chain egress {
            type filter hook egress devices = { \"*\" } priority 0; policy drop;
        }
        }",
    )?;
    if it.lab.client.command("nft", &["--version"])?.contains("v1.0.") {
        leak(&it, &frames)?;
    }
    nft(&it.lab, "delete table netdev naive")?;
    it.lock()?;
    hold(&it, &frames)?;
    Ok(())
}

/// A new link with the client's name: on the router's side it is up, on the client's not yet.
fn replug(lab: &Lab) -> Result<()> {
    unplug(lab)?;
    lab.router.ip(&format!(
        "link add {WIRE} type veth peer name {CLIENT_LINK} netns {}
         link set {WIRE} master {LAN_LINK} up",
        lab.client.path()
    ))
}

/// It may be unplugged already.
fn unplug(lab: &Lab) -> Result<()> {
    lab.router.output("ip", &["link", "del", WIRE]).map(drop)
}

fn bring_up(lab: &Lab) -> Result<()> {
    lab.client.ip(&format!(
        "link set {CLIENT_LINK} up
         address add {CLIENT_V4}/24 dev {CLIENT_LINK}
         address add {CLIENT_V6}/64 dev {CLIENT_LINK} nodad
         route add default via {ROUTER_V4}
         route add ::/0 via {ROUTER_LINK_LOCAL} dev {CLIENT_LINK}"
    ))
}

/// Everything that leaves a link from the moment that it is there; no command of ours runs.
fn from_the_first_frame(it: &LockedLab, shots: &[Shot]) -> Result<Capture> {
    replug(&it.lab)?;
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    bring_up(&it.lab)?;
    // Packet sockets first: addresses need a moment.
    let mut frames = vec![Shot::frame("early frame", "1.1.1.1:53")];
    frames.extend(shots.to_vec());
    for _ in 0..3 {
        fire(&it.lab, &frames)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(capture)
}

fn everything() -> Vec<Shot> {
    let mut shots = sockets();
    shots.push(Shot::udp("bound", "8.8.8.8:53").through(CLIENT_LINK));
    shots.push(Shot::frame("frame", "9.9.9.9:53"));
    shots
}

fn nothing_from_the_first_frame(it: &LockedLab) -> Result<()> {
    let capture = from_the_first_frame(it, &everything())?;
    hold(it, &everything())?;
    let report = capture.stop()?;
    match report.leaked_total() {
        0 => Ok(()),
        _ => Err(Error::new(format!("leaked: {}", report.summary(20)))),
    }
}

pub fn t40_replugged_link_is_guarded_at_once() -> Outcome {
    let it = LockedLab::new()?;
    let capture = from_the_first_frame(&it, &everything())?;
    eventually("a leak without the lock", || {
        fire(&it.lab, &everything())?;
        let report = capture.report();
        let has = |what: &str| report.leaked.keys().any(|class| class.contains(what));
        Ok(has("-> 1.1.1.1:53") && has("-> 9.9.9.9:53") && has("-> 1.1.1.1:443"))
    })?;
    drop(capture);
    it.lock()?;
    hold(&it, &everything())?;
    nothing_from_the_first_frame(&it)?;
    it.expect_status(BLOCKED)?;
    Ok(())
}

pub fn t41_locked_before_there_is_a_link() -> Outcome {
    let it = LockedLab::new()?;
    leak(&it, &everything())?;
    unplug(&it.lab)?;
    if it.lab.client.has_link(CLIENT_LINK)? {
        return Err("the link is still there".into());
    }
    let said = it.killswitch_ok(&["lock"])?;
    if said.contains("degraded") {
        return Err(said.into());
    }
    it.expect_status(BLOCKED)?;
    nothing_from_the_first_frame(&it)?;
    it.expect_status(BLOCKED)?;
    Ok(())
}

/// Packets inside the tunnel so large that what carries them comes in pieces.
pub fn t43_fragmented_outer_packets() -> Outcome {
    let mut it = LockedLab::new()?;
    it.lab.start_server(0)?;
    it.lock()?;
    let tunnel = it.lab.client_tunnel(0)?;
    it.lab.client.ip("link set wg0 mtu 2000")?;
    it.lab.servers[0].host.ip("link set wg0 mtu 2000")?;
    let ping = || -> Result<bool> {
        let large = ["-c1", "-W2", "-s", "1900", "10.64.0.1"];
        Ok(it.lab.client.output("ping", &large)?.status.success())
    };
    let capture = Capture::start(&it.lab, it.expectation.clone())?;
    eventually("a large packet through the tunnel", ping)?;
    let report = capture.stop()?;
    let fragments = "IPv4 fragment 192.168.1.50 -> 198.51.100.7";
    if !report.leaked.contains_key(fragments) {
        return Err("nothing came in pieces".into());
    }
    if report.leaked.keys().any(|class| class != fragments) {
        return Err(report.summary(20).into());
    }
    it.unlock()?;
    it.lab.route_into_tunnel()?;
    it.lab.client.ip(&format!("route replace default dev {TUNNEL_LINK} table {MARK}"))?;
    eventually("a large packet without the lock", ping)?;
    // The positive control: a guard that wants the server's port of every packet.
    nft(
        &it.lab,
        "table netdev naive { chain egress {
            type filter hook egress device \"eth0\" priority 0; policy accept;
            ip daddr 198.51.100.7 udp dport 51820 accept
            ip daddr 198.51.100.7 drop
        }
        }",
    )?;
    for _ in 0..3 {
        if ping()? {
            return Err("the control let a fragment through".into());
        }
    }
    drop(tunnel);
    Ok(())
}

/// Names that are something else to some parser. The last but one is no text at all.
const HOSTILE: [&[u8]; 9] = [
    b"a\";flush",
    b"*",
    b"wg*",
    b"eth*",
    b"\x1b[31mred",
    b"q\"};{",
    b"br-*",
    b"\xff\xfex",
    b"$(reboot)`w`",
];

pub fn t44_hostile_link_names() -> Outcome {
    let it = LockedLab::new()?;
    for (number, name) in HOSTILE.iter().enumerate() {
        add_link(&it.lab, name, number)?;
    }
    let passes: Vec<bool> = probe_all(&it.lab)?;
    if passes != [true; HOSTILE.len()] {
        return Err(format!("control: without the lock {passes:?}").into());
    }
    it.lock()?;
    let passes = probe_all(&it.lab)?;
    if passes != [false; HOSTILE.len()] {
        return Err(format!("frames pass in spite of the guard: {passes:?}").into());
    }
    hold(&it, &everything())?;
    let status = it.expect_status(BLOCKED)?;
    let guarded = status.json["layers"]["egress"].as_array().map_or(0, Vec::len);
    if guarded != 2 * HOSTILE.len() + 1 {
        return Err(format!("{guarded} links are guarded: {status:?}").into());
    }
    plain_text_only(&it, &["status"])?;
    plain_text_only(&it, &["plan"])?;
    for name in HOSTILE.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
        let asked = ["explain", "--out", name, "--to", "1.1.1.1", "--proto", "udp", "--port", "53"];
        let said = plain_text_only(&it, &asked)?;
        if !said.contains("refused") {
            return Err(format!("explain --out {name:?}: {said}").into());
        }
    }
    it.lock()?;
    it.unlock()?;
    if probe_all(&it.lab)? != [true; HOSTILE.len()] {
        return Err("unlock did not open every link".into());
    }
    Ok(())
}

/// A pair of links; printf(1) writes the name.
fn add_link(lab: &Lab, name: &[u8], number: usize) -> Result<()> {
    let octal: String = name.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let add = format!(
        "name=$(printf '{octal}') && ip link add name \"$name\" type veth peer name p{number} && \
         ip link set \"$name\" up && ip link set p{number} up"
    );
    lab.client.command("sh", &["-c", &add]).map(drop)
}

/// Whether a frame sent through each of the links reaches the other end.
fn probe_all(lab: &Lab) -> Result<Vec<bool>> {
    HOSTILE.iter().zip(0..).map(|(name, number)| frame_arrives(lab, name, number)).collect()
}

/// Larger than all that the kernel sends by itself meanwhile.
fn frame_arrives(lab: &Lab, name: &[u8], number: usize) -> Result<bool> {
    const SIZE: usize = 1400;
    const COUNT: usize = 50;
    // nix tells of links by names made text in the same way.
    let sender = PacketSocket::open(&lab.client, &String::from_utf8_lossy(name))?;
    let mut frame = vec![0xff; SIZE];
    frame[6..12].copy_from_slice(&sender.address());
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let before = received(lab, number)?;
    let sent = (0..COUNT).filter(|_| sender.send(&frame).is_ok()).count();
    let arrived = received(lab, number)? - before >= SIZE * COUNT;
    match (sent, arrived) {
        (COUNT, true) => Ok(true),
        (0, false) => Ok(false),
        other => Err(Error::new(format!("link {number}: {other:?}"))),
    }
}

/// Bytes that came in at a hostile link's other end (proc_net_dev(5)).
fn received(lab: &Lab, number: usize) -> Result<usize> {
    let table = lab.client.command("cat", &["/proc/net/dev"])?;
    let end = format!("p{number}:");
    table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(&end)?.split_whitespace().next())
        .and_then(|bytes| bytes.parse().ok())
        .ok_or_else(|| Error::new(format!("no link {end}")))
}

/// Runs the program: it must end well or as `status` does, and print no control character.
fn plain_text_only(it: &LockedLab, arguments: &[&str]) -> Result<String> {
    let output = it.killswitch(arguments)?;
    let said = words(&output);
    let text = [output.stdout, output.stderr].concat();
    let control = |byte: &u8| *byte < b' ' && *byte != b'\n';
    if !matches!(output.status.code(), Some(0 | BLOCKED)) || text.iter().any(control) {
        return Err(Error::new(format!("{arguments:?}: {}: {said:?}", output.status)));
    }
    Ok(said)
}
