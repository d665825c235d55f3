//! Links that are renamed, replugged, absent, or called something hostile.

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Capture, Error, Lab, Result};

use crate::common::{BLOCKED, LockedLab, canary, words};
use crate::shot::{Shot, fire, hold, leak, naive_lock, nft, no_naive_lock};

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
    hold(&it, &frames)?;
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
        _ => Err(Error::new(format!("leaked: {}", report.summary()))),
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
        return Err(report.summary().into());
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

/// Names that are text to some parser; printf(1) writes them.
const HOSTILE: [&str; 9] = [
    "a\";flush",
    "*",
    "wg*",
    "eth*",
    "\\033[31mred",
    "\\377\\376x",
    "q\"};{",
    "br-*",
    "$(reboot)`w`",
];

pub fn t44_hostile_link_names() -> Outcome {
    let it = LockedLab::new()?;
    for (number, name) in HOSTILE.iter().enumerate() {
        let make = format!(
            "name=$(printf '{name}') && ip link add name \"$name\" type veth peer name p{number} \
             && ip link set \"$name\" up && ip link set p{number} up"
        );
        it.lab.client.command("sh", &["-c", &make])?;
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
    for name in ["a\";flush", "*", "wg*", "\u{1b}[31mred", "q\"};{", "br-*"] {
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

/// Whether a frame sent through each of the links reaches the other end.
fn probe_all(lab: &Lab) -> Result<Vec<bool>> {
    (0..HOSTILE.len()).map(|number| frame_arrives(lab, number)).collect()
}

/// A link's name may not be text, so Python names it by bytes; the other end counts.
fn frame_arrives(lab: &Lab, number: usize) -> Result<bool> {
    const SCRIPT: &str = "
import fcntl, os, socket, struct, sys
# A veth's other end is made first, so its index is one less.
index = socket.if_nametoindex(sys.argv[1]) + 1
listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
listener.bind((sys.argv[1], 3))
listener.settimeout(1)
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
# SIOCGIFNAME, netdevice(7).
request = fcntl.ioctl(sender, 0x8910, struct.pack('16si20x', b'', index))
name = request[:16].split(b'\\0')[0]
frame = b'\\xff' * 6 + bytes(6) + b'\\x08\\x00' + sys.argv[2].encode()
try:
    sender.bind((os.fsdecode(name), 0))
    for _ in range(3):
        sender.send(frame)
except OSError as error:
    print('refused', error)
    sys.exit(0)
try:
    while True:
        if sys.argv[2].encode() in listener.recv(2000):
            print('arrived')
            break
except TimeoutError:
    print('nothing')
";
    let mark = String::from_utf8_lossy(&canary("frame")).into_owned();
    let said = lab.client.command("python3", &["-c", SCRIPT, &format!("p{number}"), &mark])?;
    Ok(said.starts_with("arrived"))
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
