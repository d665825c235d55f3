//! What `[allow]` names works, and nothing beside it.

use killswitch::lab::addresses::*;
use killswitch::lab::decoder::{Service, Transport};
use killswitch::lab::harness::Outcome;
use killswitch::lab::services::Echo;
use killswitch::lab::{Context, Error, Lab, Result};

use crate::common::{LockedLab, reaches};
use crate::shot::{Shot, hold, leak, pass};
use crate::talk::{By, is_mute, talks};

/// The LAN is expected on the wire.
pub fn lan_of(it: &mut LockedLab) -> Result<()> {
    let net = |text: &str| text.parse().map_err(|_| Error::new(format!("no prefix: {text}")));
    it.expectation.lan = vec![net(LAN_V4)?, net(LAN_V6)?];
    it.expectation.groups = true;
    Ok(())
}

/// Services of the client itself.
fn services(lab: &Lab) -> Result<Echo> {
    Echo::start(&lab.client, &[CLIENT_V4.into(), CLIENT_V6.into()], &[2222, 2223])
}

fn the_internet() -> Vec<Shot> {
    vec![
        Shot::udp("dns4", "1.1.1.1:53"),
        Shot::udp("udp4", "203.0.113.10:4433"),
        Shot::tcp("1.1.1.1:443"),
        Shot::udp("dns6", "[2606:4700:4700::1111]:53"),
        Shot::tcp("[2001:db8:ffff::10]:443"),
    ]
}

const LAN_TALK: [(By, &str); 6] = [
    (By::Ping, "192.168.1.20"),
    (By::Udp, "192.168.1.20:8080"),
    (By::Tcp, "192.168.1.1:443"),
    (By::Ping, "2001:db8:1::20"),
    (By::Udp, "[2001:db8:1::20]:8080"),
    (By::Tcp, "[2001:db8:1::1]:443"),
];

const TO_CLIENT: [(By, &str); 4] = [
    (By::Tcp, "192.168.1.50:2222"),
    (By::Udp, "192.168.1.50:2222"),
    (By::Tcp, "[2001:db8:1::50]:2222"),
    (By::Udp, "[2001:db8:1::50]:2222"),
];

pub fn allow_lan() -> Outcome {
    let mut beyond = the_internet();
    beyond.extend([
        Shot::udp("other lan", "192.168.2.9:443"),
        Shot::udp("other lan6", "[2001:db8:2::9]:443"),
        Shot::udp("dns of the router", "192.168.1.1:53"),
        Shot::udp("ssdp", "239.255.255.250:1900").through(CLIENT_LINK),
    ]);
    let mut it = LockedLab::new()?;
    let _services = services(&it.lab)?;
    talks(&it.lab.internet, &TO_CLIENT)?;
    it.lock()?;
    is_mute(&it.lab.client, &LAN_TALK)?;
    is_mute(&it.lab.neighbour, &TO_CLIENT)?;
    it.unlock()?;
    it.configure(&format!("[allow]\nlan = [\"{LAN_V4}\", \"{LAN_V6}\"]\n"))?;
    lan_of(&mut it)?;
    leak(&it, &beyond)?;
    it.lock()?;
    let seen = it.during(|lab| {
        talks(&lab.client, &LAN_TALK)?;
        talks(&lab.neighbour, &TO_CLIENT)?;
        is_mute(&lab.internet, &TO_CLIENT)
    })?;
    seen.must_be_clean()?;
    // In fragments, of which the later ones have no ports.
    for neighbour in ["192.168.1.20", "2001:db8:1::20"] {
        it.lab.client.command("ping", &["-c3", "-W5", "-s4000", neighbour])?;
    }
    hold(&it, &beyond)?;
    Ok(())
}

/// Also between the machine's own link-local addresses, which the kernel looks up on another link.
pub fn allow_lan_keeps_loopback() -> Outcome {
    let it = LockedLab::with("[allow]\nlan = [\"192.168.1.0/24\", \"fe80::/10\"]\n")?;
    let listing = ["-6", "-oneline", "address", "show", "dev", CLIENT_LINK, "scope", "link"];
    let listing = it.lab.client.command("ip", &listing)?;
    let own = listing.split(['/', ' ']).find(|word| word.starts_with("fe80:"));
    let own = format!("{}%{CLIENT_LINK}", own.ok_or("no link-local address")?);
    for _ in ["open", "locked"] {
        for address in [&own, "127.0.0.1", "::1", "192.168.1.50", "2001:db8:1::50"] {
            reaches(&it.lab.client, address).during(address)?;
        }
        it.lock()?;
    }
    Ok(())
}

pub fn allow_lan_dns() -> Outcome {
    let mut it = LockedLab::with(&format!(
        "[allow]\nlan = [\"{LAN_V4}\", \"{LAN_V6}\"]\n\
         lan_dns = [\"{ROUTER_V4}\", \"{ROUTER_V6}\"]\n"
    ))?;
    lan_of(&mut it)?;
    it.expectation.lan_dns = vec![ROUTER_V4.into(), ROUTER_V6.into()];
    let others = [
        Shot::udp("dns of a neighbour", "192.168.1.20:53"),
        Shot::udp("dns of a neighbour6", "[2001:db8:1::20]:53"),
        Shot::tcp("192.168.1.20:853"),
        Shot::udp("mdns", "224.0.0.251:5353").through(CLIENT_LINK),
        Shot::udp("dns4", "1.1.1.1:53"),
    ];
    leak(&it, &others)?;
    it.lock()?;
    talks(
        &it.lab.client,
        &[
            (By::Udp, "192.168.1.1:53"),
            (By::Tcp, "192.168.1.1:53"),
            (By::Tcp, "192.168.1.1:853"),
            (By::Udp, "[2001:db8:1::1]:53"),
        ],
    )?;
    hold(&it, &others)?;
    Ok(())
}

pub fn allow_ntp() -> Outcome {
    let near = [(By::Udp, "203.0.113.10:123"), (By::Udp, "[2001:db8:ffff::10]:123")];
    let others = [
        Shot::udp("other server", "1.1.1.1:123"),
        Shot::udp("other port", "203.0.113.10:53"),
        Shot::udp("from ntp's port", "203.0.113.10:53").from("0.0.0.0:123"),
        Shot::tcp("203.0.113.10:123"),
        Shot::udp("other server6", "[2606:4700:4700::1111]:123"),
    ];
    let mut it = LockedLab::new()?;
    it.lock()?;
    is_mute(&it.lab.client, &near)?;
    it.unlock()?;
    leak(&it, &others)?;
    it.configure(&format!("[allow]\nntp = [\"{INTERNET_V4}\", \"{INTERNET_V6}\"]\n"))?;
    it.expectation.ntp = vec![INTERNET_V4.into(), INTERNET_V6.into()];
    it.lock()?;
    talks(&it.lab.client, &near)?;
    hold(&it, &others)?;
    pass(&it, &[Shot::udp("time", "203.0.113.10:123"), Shot::frame("frame", "203.0.113.10:123")])?;
    Ok(())
}

pub fn allow_inbound() -> Outcome {
    let mut it = LockedLab::with(&format!(
        "[allow]\ninbound = [{{ proto = \"tcp\", port = 2222, from = [\"{LAN_V4}\", \"{LAN_V6}\"] }}, \
         {{ proto = \"udp\", port = 2222, from = [\"{LAN_V4}\", \"{LAN_V6}\"] }}]\n"
    ))?;
    for transport in [Transport::Tcp, Transport::Udp] {
        for from in [LAN_V4, LAN_V6] {
            let from = from.parse()?;
            it.expectation.inbound.push(Service { transport, port: 2222, from });
        }
    }
    let services = services(&it.lab)?;
    let other_port = [(By::Tcp, "192.168.1.50:2223"), (By::Udp, "[2001:db8:1::50]:2223")];
    talks(&it.lab.internet, &TO_CLIENT)?;
    talks(&it.lab.neighbour, &other_port)?;
    it.lock()?;
    let seen = it.during(|lab| {
        talks(&lab.neighbour, &TO_CLIENT)?;
        is_mute(&lab.neighbour, &other_port)?;
        is_mute(&lab.internet, &TO_CLIENT)
    })?;
    seen.must_be_clean()?;
    drop(services);
    // The service's own port starts nothing. The decoder cannot tell who began: the canary can.
    let starts = [
        Shot::udp("start4", "192.168.1.20:9998").from("0.0.0.0:2222"),
        Shot::udp("start6", "[2001:db8:1::20]:9998").from("[::]:2222"),
        Shot::tcp("192.168.1.20:9998").from("0.0.0.0:2222"),
    ];
    hold(&it, &starts)?;
    hold(&it, &the_internet())?;
    it.unlock()?;
    leak(&it, &starts)?;
    Ok(())
}
