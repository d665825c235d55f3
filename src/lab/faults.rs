//! What networks, servers and other programs do to a client, one at a time or together, each
//! undone on demand. Where the client's wire leads, and what a link that looks like the tunnel
//! sends, the [`super::Capture`] sees throughout.

use std::fmt;
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::Duration;

use super::addresses::*;
use super::error::{Error, Result};
use super::topology::Lab;
use crate::dice::Dice;

/// Preferences of the policy rules that [`Fault::RulesDeleted`] deletes.
const PREFERENCES: RangeInclusive<u32> = 27500..=27599;
/// Look-alikes' names until they take the tunnel's.
const VETH: &str = "look0";
const TUN: &str = "look1";
/// Its end in [`Lab::trap`].
const TRAP: &str = "trap0";

/// Something that happens to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The client's link is set down.
    LinkDown,
    /// The client's link loses its carrier.
    CableOut,
    /// The client's link is on another network: other router, addresses and prefixes, IPv4 and
    /// IPv6.
    NewNetwork,
    /// The default routes are gone.
    NoDefaultRoute,
    /// A server (0 or 1) crashes: its machine refuses what comes (ICMP port unreachable).
    ServerRefuses(usize),
    /// A server (0 or 1) crashes: nothing answers at all.
    ServerSilent(usize),
    /// The lock's policy rules are deleted.
    RulesDeleted,
    /// `ip rule flush`: the system's own rules go, too.
    RulesFlushed,
    /// The tunnel's routing table is emptied.
    RoutesDeleted,
    /// `nft flush ruleset`.
    RulesetFlushed,
    /// `nft delete table inet killswitch`.
    TableDeleted,
    /// The tunnel's link is deleted.
    TunnelDeleted,
    /// A veth link takes the tunnel's name, addresses and routes.
    LookAlikeVeth,
    /// A tun link that nobody reads takes the tunnel's name, addresses and routes.
    LookAlikeTun,
    /// The client's own link is renamed to the tunnel's name.
    LookAlikeNic,
}

use Fault::*;

/// All there are, in a fixed order.
pub const ALL: [Fault; 17] = [
    LinkDown,
    CableOut,
    NewNetwork,
    NoDefaultRoute,
    ServerRefuses(0),
    ServerRefuses(1),
    ServerSilent(0),
    ServerSilent(1),
    RulesDeleted,
    RulesFlushed,
    RoutesDeleted,
    RulesetFlushed,
    TableDeleted,
    TunnelDeleted,
    LookAlikeVeth,
    LookAlikeTun,
    LookAlikeNic,
];

/// How the client's network is at present. [`settle`] makes it so.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    /// The client's link: it may be renamed, its index stays.
    pub(super) nic: u32,
    link_down: bool,
    cable_out: bool,
    elsewhere: bool,
    no_default_route: bool,
    /// Index of a tun link that looks like the tunnel.
    look_alike: Option<u32>,
}

impl Conditions {
    pub(super) fn new(nic: u32) -> Self {
        Conditions {
            nic,
            link_down: false,
            cable_out: false,
            elsewhere: false,
            no_default_route: false,
            look_alike: None,
        }
    }
}

/// `length` faults, always the same for a seed.
pub fn sequence(seed: u64, length: usize) -> Vec<Fault> {
    let mut dice = Dice::new(seed);
    (0..length).map(|_| dice.pick(&ALL)).collect()
}

/// Every two different faults, to be had at once.
pub fn pairs() -> Vec<(Fault, Fault)> {
    let later = |(index, &first): (usize, &Fault)| {
        ALL[index + 1..].iter().map(move |&second| (first, second)).collect::<Vec<_>>()
    };
    ALL.iter().enumerate().flat_map(later).collect()
}

impl Fault {
    /// For people, and for a command line.
    pub fn name(self) -> &'static str {
        match self {
            LinkDown => "link-down",
            CableOut => "cable-out",
            NewNetwork => "new-network",
            NoDefaultRoute => "no-default-route",
            ServerRefuses(0) => "server1-refuses",
            ServerRefuses(_) => "server2-refuses",
            ServerSilent(0) => "server1-silent",
            ServerSilent(_) => "server2-silent",
            RulesDeleted => "rules-deleted",
            RulesFlushed => "rules-flushed",
            RoutesDeleted => "routes-deleted",
            RulesetFlushed => "ruleset-flushed",
            TableDeleted => "table-deleted",
            TunnelDeleted => "tunnel-deleted",
            LookAlikeVeth => "look-alike-veth",
            LookAlikeTun => "look-alike-tun",
            LookAlikeNic => "look-alike-nic",
        }
    }

    /// What must be there besides `ip`: programs, and files by their paths.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            ServerSilent(_) => &["nft", "/dev/net/tun"],
            RulesetFlushed | TableDeleted => &["nft"],
            ServerRefuses(_) | LookAlikeTun => &["/dev/net/tun"],
            _ => &[],
        }
    }

    /// Whether it goes on until it is undone. The others are done in a moment, and it is for the
    /// lock's owner to mend them.
    pub fn lasts(self) -> bool {
        !matches!(
            self,
            RulesDeleted | RoutesDeleted | RulesetFlushed | TableDeleted | TunnelDeleted
        )
    }

    /// Makes it happen. What is gone already, or is refused to us since somebody owns it, is no
    /// error.
    ///
    /// # Errors
    /// The words of `ip` or `nft`.
    pub fn apply(self, lab: &mut Lab) -> Result<()> {
        match self {
            LinkDown => settle(lab, |now| now.link_down = true),
            CableOut => settle(lab, |now| now.cable_out = true),
            NewNetwork => settle(lab, |now| now.elsewhere = true),
            NoDefaultRoute => settle(lab, |now| now.no_default_route = true),
            ServerRefuses(server) => {
                lab.stop_server(server);
                Ok(())
            }
            ServerSilent(server) => {
                lab.servers[server].silence()?;
                lab.stop_server(server);
                Ok(())
            }
            RulesDeleted => delete_rules(lab),
            RulesFlushed => both_families(lab, &["rule", "flush"]),
            RoutesDeleted => both_families(lab, &["route", "flush", "table", &MARK.to_string()]),
            RulesetFlushed => attempt(lab, "nft", &["flush", "ruleset"]),
            TableDeleted => attempt(lab, "nft", &["delete", "table", "inet", "killswitch"]),
            TunnelDeleted => delete_tunnel(lab),
            LookAlikeVeth => look_alike_veth(lab),
            LookAlikeTun => look_alike_tun(lab),
            LookAlikeNic => {
                rename_nic(lab, TUNNEL_LINK)?;
                settle(lab, |_| ())
            }
        }
    }

    /// Brings back what was before it, as far as [`Fault::lasts`]; what was not applied, too.
    ///
    /// # Errors
    /// The words of `ip` or `nft`; why a server does not start.
    pub fn undo(self, lab: &mut Lab) -> Result<()> {
        match self {
            LinkDown => settle(lab, |now| now.link_down = false),
            CableOut => settle(lab, |now| now.cable_out = false),
            NewNetwork => settle(lab, |now| now.elsewhere = false),
            NoDefaultRoute => settle(lab, |now| now.no_default_route = false),
            ServerRefuses(server) => lab.start_server(server),
            ServerSilent(server) => {
                lab.servers[server].end_silence()?;
                lab.start_server(server)
            }
            RulesFlushed => restore_system_rules(lab),
            LookAlikeVeth => lab.trap.output("ip", &["link", "delete", TRAP]).map(drop),
            LookAlikeTun => remove_look_alike(lab),
            LookAlikeNic => {
                rename_nic(lab, CLIENT_LINK)?;
                settle(lab, |_| ())
            }
            RulesDeleted | RoutesDeleted | RulesetFlushed | TableDeleted | TunnelDeleted => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Changes how things are.
fn settle(lab: &mut Lab, change: impl FnOnce(&mut Conditions)) -> Result<()> {
    let moved = lab.conditions.elsewhere;
    change(&mut lab.conditions);
    let now = lab.conditions.clone();
    if moved != now.elsewhere {
        // Pulled out here, plugged in there.
        lab.router.ip(&format!("link set {WIRE} down"))?;
    }
    let (bridge, cable) = (
        if now.elsewhere { OTHER_LAN_LINK } else { LAN_LINK },
        if now.cable_out { "down" } else { "up" },
    );
    lab.router.ip(&format!("link set {WIRE} master {bridge}\nlink set {WIRE} {cable}"))?;
    // The lock's owner may be giving the link another name just now.
    const TRIES: u32 = 20;
    let mut settled = Ok(());
    for _ in 0..TRIES {
        settled = settle_client(lab, &now, moved);
        if settled.is_ok() {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    settled
}

/// As a DHCP client would; may be repeated.
fn settle_client(lab: &Lab, now: &Conditions, moved: bool) -> Result<()> {
    let nic = name_of(lab, now.nic)?;
    if now.link_down {
        return lab.client.ip(&format!("link set {nic} down"));
    }
    lab.client.ip(&format!("link set {nic} up"))?;
    let [old, new] = if now.elsewhere { [HOME, OTHER] } else { [OTHER, HOME] };
    for (address, length) in old.addresses() {
        let address = format!("{address}/{length}");
        lab.client.output("ip", &["address", "delete", &address, "dev", &nic])?;
    }
    for (address, length) in new.addresses() {
        lab.client.ip(&format!("address replace {address}/{length} dev {nic}"))?;
    }
    if now.no_default_route || now.cable_out || moved != now.elsewhere {
        both_families(lab, &["route", "flush", "exact", "default", "table", "main"])?;
    }
    if now.no_default_route || now.cable_out {
        return Ok(());
    }
    let route = |onlink: &str| {
        lab.client.ip(&format!(
            "route replace default via {} dev {nic} {onlink}
             route replace ::/0 via {} dev {nic}",
            new.gateway_v4, new.gateway_v6
        ))
    };
    // Without the system's rules the kernel does not find the gateway, and must be told.
    route("").or_else(|_| route("onlink"))
}

/// What a network gives the client.
struct Lease {
    v4: std::net::Ipv4Addr,
    v6: std::net::Ipv6Addr,
    gateway_v4: std::net::Ipv4Addr,
    gateway_v6: std::net::Ipv6Addr,
}

const HOME: Lease =
    Lease { v4: CLIENT_V4, v6: CLIENT_V6, gateway_v4: ROUTER_V4, gateway_v6: ROUTER_LINK_LOCAL };
const OTHER: Lease = Lease {
    v4: OTHER_CLIENT_V4,
    v6: OTHER_CLIENT_V6,
    gateway_v4: OTHER_ROUTER_V4,
    gateway_v6: OTHER_ROUTER_LINK_LOCAL,
};

impl Lease {
    fn addresses(&self) -> [(std::net::IpAddr, u8); 2] {
        [(self.v4.into(), 24), (self.v6.into(), 64)]
    }
}

/// Whatever comes of it: the client may be defended.
fn attempt(lab: &Lab, program: &str, arguments: &[&str]) -> Result<()> {
    lab.client.output(program, arguments).map(drop)
}

/// Whatever has the tunnel's name, unless it is the client's own link in disguise.
fn delete_tunnel(lab: &Lab) -> Result<()> {
    match lab.client_link_index(TUNNEL_LINK) {
        Ok(index) if index != lab.conditions.nic => {
            attempt(lab, "ip", &["link", "delete", TUNNEL_LINK])
        }
        _ => Ok(()),
    }
}

fn both_families(lab: &Lab, arguments: &[&str]) -> Result<()> {
    for family in ["-4", "-6"] {
        let mut words = vec![family];
        words.extend(arguments);
        attempt(lab, "ip", &words)?;
    }
    Ok(())
}

fn delete_rules(lab: &Lab) -> Result<()> {
    for family in ["-4", "-6"] {
        let listing = lab.client.command("ip", &[family, "rule"])?;
        let preferences = listing.lines().filter_map(|line| line.split(':').next()?.parse().ok());
        let ours = preferences.filter(|preference: &u32| PREFERENCES.contains(preference));
        let commands: String = ours.map(|it| format!("rule delete pref {it}\n")).collect();
        // One that is back already, or gone already, does not stop the rest.
        let _ = lab.client.feed("ip", &[family, "-force", "-batch", "-"], &commands);
    }
    Ok(())
}

/// fib_default_rules_init() and fib6_rules_net_init() of the kernel.
fn restore_system_rules(lab: &Lab) -> Result<()> {
    both_families(lab, &["rule", "add", "pref", "32766", "lookup", "main"])?;
    let default = ["-4", "rule", "add", "pref", "32767", "lookup", "default"];
    attempt(lab, "ip", &default)
}

fn look_alike_veth(lab: &Lab) -> Result<()> {
    lab.trap.output("ip", &["link", "delete", TRAP])?;
    // Index: see set_up_isp.
    lab.trap.ip(&format!(
        "link add {TRAP} index 200 type veth peer name {VETH} netns {}
         link set {TRAP} up",
        lab.client.path()
    ))?;
    // Nobody would answer: without ARP, what is sent leaves at once.
    lab.client.ip(&format!("link set {VETH} arp off"))?;
    disguise(lab, VETH)
}

fn look_alike_tun(lab: &mut Lab) -> Result<()> {
    remove_look_alike(lab)?;
    lab.client.ip(&format!("tuntap add dev {TUN} mode tun"))?;
    lab.conditions.look_alike = Some(lab.client_link_index(TUN)?);
    disguise(lab, TUN)
}

fn remove_look_alike(lab: &mut Lab) -> Result<()> {
    if let Some(index) = lab.conditions.look_alike.take()
        && let Ok(name) = name_of(lab, index)
    {
        attempt(lab, "ip", &["link", "delete", &name])?;
    }
    Ok(())
}

/// The tunnel's name may be taken again between our deleting its link and our taking the name.
fn disguise(lab: &Lab, link: &str) -> Result<()> {
    take_name(lab, link, TUNNEL_LINK)?;
    // The lock's owner may put the impostor aside at once.
    let _ = lab.client.ip(&format!(
        "address replace {TUNNEL_V4}/32 dev {TUNNEL_LINK}
         address replace {TUNNEL_V6}/128 dev {TUNNEL_LINK} nodad
         link set {TUNNEL_LINK} up
         route replace default dev {TUNNEL_LINK} table {MARK} proto kernel
         route replace ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
    ));
    Ok(())
}

fn rename_nic(lab: &Lab, to: &str) -> Result<()> {
    const TRIES: u32 = 20;
    let mut last = Error::new("never tried");
    for _ in 0..TRIES {
        let name = name_of(lab, lab.conditions.nic)?;
        if name == to {
            return Ok(());
        }
        // The lock's owner may be giving it another name just now.
        match lab.client.ip(&format!("link set {name} down")) {
            Ok(()) => return take_name(lab, &name, to),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The lock's owner may be faster each time, and keep the tunnel's name.
fn take_name(lab: &Lab, from: &str, to: &str) -> Result<()> {
    const TRIES: u32 = 20;
    let mut last = Error::new("never tried");
    for _ in 0..TRIES {
        if to == TUNNEL_LINK {
            delete_tunnel(lab)?;
        }
        match lab.client.ip(&format!("link set {from} name {to}")) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        sleep(Duration::from_millis(5));
    }
    if to == TUNNEL_LINK { Ok(()) } else { Err(last) }
}

fn name_of(lab: &Lab, index: u32) -> Result<String> {
    lab.client.run(|| {
        nix::net::if_::if_indextoname(index)
            .map(|name| name.to_string_lossy().into_owned())
            .map_err(|error| Error::new(format!("the client's link {index}: {error}")))
    })?
}
