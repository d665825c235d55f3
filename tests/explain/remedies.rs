//! Random packets: a remedy that is told makes its packet pass, and where none is told none would.

use std::net::IpAddr;

use clap::Parser;
use killswitch::cli::args::{Arguments, Command};
use killswitch::dice::Dice;
use killswitch::explain::{Remedy, Words};
use killswitch::policy::{Inbound, LinkPattern, NAME_SERVICE_PORTS, Policy, Protocol};

use crate::{Site, links};

const FILES: [&str; 3] = ["usual", "bare", "gateway"];
const V4: [&str; 12] = [
    "1.1.1.1",
    "198.51.100.7",
    "192.0.2.123",
    "162.159.200.1",
    "192.168.1.1",
    "192.168.1.20",
    "192.168.2.9",
    "172.17.0.2",
    "10.64.0.2",
    "224.0.0.251",
    "224.0.0.22",
    "255.255.255.255",
];
const V6: [&str; 8] = [
    "2606:4700::1",
    "2001:db8::7",
    "fd00:1::5",
    "fd00:2::5",
    "fe80::1",
    "fd00:64::2",
    "ff02::1:2",
    "ff02::16",
];
const PORTS: [u16; 12] = [22, 53, 67, 68, 123, 443, 546, 547, 853, 5000, 5353, 51820];

/// As a person would type it.
fn typed(dice: &mut Dice) -> Vec<String> {
    let addresses: &[&str] = if dice.once_in(3) { &V6 } else { &V4 };
    let mut words = vec![
        format!("--to={}", dice.pick(addresses)),
        format!("--from={}", dice.pick(addresses)),
        format!("--proto={}", dice.pick(&["tcp", "udp", "udp", "icmp", "icmpv6", "igmp", "47"])),
        format!("--port={}", dice.pick(&PORTS)),
        format!("--sport={}", dice.pick(&PORTS)),
        format!("--mark={}", dice.pick(&["0", "0", "0", "0x6b73"])),
    ];
    let link = |dice: &mut Dice| links()[dice.below(7)].name.clone();
    let (out, into) = dice.pick(&[(true, false), (true, false), (false, true), (true, true)]);
    if out {
        words.push(format!("--out={}", link(dice)));
    }
    if into {
        words.push(format!("--in={}", link(dice)));
    }
    if out && !into && dice.once_in(5) {
        words.push("--frame".into());
    }
    if dice.once_in(4) {
        words.push("--reply".into());
    }
    if dice.once_in(2) {
        words.push(format!("--icmp-type={}", dice.pick(&[3_u8, 8, 128, 133, 134, 135, 143])));
    }
    words
}

fn words(typed: &[String]) -> Words {
    let line = ["killswitch".to_owned(), "explain".to_owned()];
    let arguments = Arguments::try_parse_from(line.iter().chain(typed)).expect("words");
    let Command::Explain(options) = arguments.command else { panic!("{typed:?}") };
    options.words
}

#[test]
fn remedies_work_and_refusals_are_final() {
    let sites = FILES.map(|name| (name, Site::named(name)));
    let (mut remedied, mut refused) = (0, 0);
    for seed in 0..1500 {
        let mut dice = Dice::new(seed);
        let (name, site) = &sites[dice.below(3)];
        let typed = typed(&mut dice);
        let words = words(&typed);
        let Ok(answer) = site.answer(&words) else { continue };
        let place = format!("seed {seed}: {name} {}", typed.join(" "));
        match &answer.remedy {
            None => {}
            Some(Ok(remedy)) => {
                remedied += 1;
                let mended = Site::of(&with(name, remedy));
                let after = mended.answer(&words).expect("the same packet");
                assert!(after.remedy.is_none(), "{place}\n{remedy:#?}\n{:#?}", after.layers);
            }
            Some(Err(why)) => {
                refused += 1;
                let widest =
                    Site { policy: widest(&site.policy, &words), config: None, ..Site::of("") };
                let after = widest.answer(&words).expect("the same packet");
                assert!(after.remedy.is_some(), "{place}: {why}, but:\n{:#?}", after.layers);
            }
        }
    }
    assert!(remedied > 60 && refused > 250, "{remedied} remedied, {refused} refused");
}

/// The file's text with the remedy in it, as a person would write it.
fn with(name: &str, remedy: &Remedy) -> String {
    let path = format!("{}/tests/explain/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let mut document: toml::Table =
        std::fs::read_to_string(path).expect("a file").parse().expect("TOML");
    for it in &remedy.add {
        let (table, key) = it.key.split_once('.').expect("TABLE.KEY");
        let value: toml::Table = format!("it = {}", it.value).parse().expect("TOML");
        let table = document.entry(table).or_insert_with(|| toml::Table::new().into());
        let table = table.as_table_mut().expect("a table");
        assert_eq!(table.contains_key(key), it.place.is_some(), "{it:?}");
        match (it.item, table.get_mut(key)) {
            (true, list) => {
                list.and_then(|it| it.as_array_mut()).expect("a list").push(value["it"].clone())
            }
            (false, _) => drop(table.insert(key.into(), value["it"].clone())),
        }
    }
    document.to_string()
}

/// All that `[allow]` and `[forward]` could open for this packet, short of calling a public address or
/// the VPN's own local, at once.
fn widest(policy: &Policy, words: &Words) -> Policy {
    let mut policy = policy.clone();
    let own: Vec<IpAddr> =
        policy.tunnel.iter().flat_map(|it| it.addresses.iter().copied()).collect();
    policy.dhcp = true;
    policy.forward_into_tunnel = true;
    let server = |address: IpAddr| policy.servers.iter().any(|it| it.endpoint.ip() == address);
    let ends =
        [words.to, words.from].into_iter().flatten().filter(|it| !server(*it) && !own.contains(it));
    let ends: Vec<IpAddr> =
        ends.filter(|it| !it.is_multicast() && it.to_string() != "255.255.255.255").collect();
    let private = |it: &IpAddr| match it {
        IpAddr::V4(it) => it.is_private(),
        IpAddr::V6(it) => it.is_unique_local() || it.is_unicast_link_local(),
    };
    policy.lan.extend(ends.iter().copied().filter(private).map(ipnet::IpNet::from));
    policy.lan = ipnet::IpNet::aggregate(&policy.lan);
    policy.lan_dns.extend(ends.iter().copied().filter(private));
    policy.ntp.extend(ends.iter().copied());
    let protocol = if words.proto == 6 { Protocol::Tcp } else { Protocol::Udp };
    let (port, peer) = match (&words.out, words.reply) {
        (None, _) => (words.port, words.from),
        (Some(_), true) => (Some(words.sport), words.to),
        _ => (None, None),
    };
    if let (Some(port), Some(peer)) = (port, peer) {
        policy.inbound.insert(Inbound { protocol, port, from: peer.into() });
    }
    for link in links().iter().filter(|it| it.kind.as_deref() == Some("bridge")) {
        policy.internal.insert(LinkPattern::Exact(link.name.clone()));
    }
    policy.internal_ports.insert(LinkPattern::Exact("vport".into()));
    policy
}

#[test]
fn dns_in_clear_to_the_internet_has_no_remedy() {
    for name in FILES {
        let site = Site::named(name);
        for port in NAME_SERVICE_PORTS {
            let typed = [
                "--out=nic0".to_owned(),
                "--to=1.1.1.1".into(),
                "--proto=udp".into(),
                format!("--port={port}"),
            ];
            let answer = site.answer(&words(&typed)).expect("an answer");
            let why = answer.remedy.expect("it is blocked").expect_err("nothing may allow it");
            assert!(why.contains("inside the tunnel"), "{why}");
        }
    }
}
