//! What a neighbour may learn of the tunnel: threats 8 and 9.

use killswitch::lab::addresses::*;
use killswitch::lab::harness::Outcome;
use killswitch::lab::{Context, Error, Lab, Result};

use crate::common::LockedLab;
use crate::senders::{probe, serve};

/// A tunnel link with the tunnel's address, with nobody behind it.
fn tunnel_link(lab: &Lab) -> Result<()> {
    lab.client.command("ip", &["tuntap", "add", TUNNEL_LINK, "mode", "tun"])?;
    lab.client.ip(&format!(
        "link set {TUNNEL_LINK} up
         address add {TUNNEL_V4}/32 dev {TUNNEL_LINK}
         address add {TUNNEL_V6}/128 dev {TUNNEL_LINK} nodad"
    ))
}

/// MLLVD-CR-24-03
pub fn t08_arp_for_the_tunnel_address() -> Outcome {
    let it = LockedLab::new()?;
    tunnel_link(&it.lab)?;
    let ask = |lab: &Lab| probe(lab, &TUNNEL_V4.to_string(), "::", &["arp"]);
    it.until_shown("ARP from the tunnel's address 10.64.0.2", ask)?;
    it.lock()?;
    let seen = it.during(ask)?;
    seen.must_be_clean()?;
    Ok(())
}

/// CVE-2019-14899
pub fn t09_probes_of_the_tunnel_address() -> Outcome {
    const ANSWERS: [(&str, &str); 8] = [
        ("open4", "protocol 6 from the tunnel's own address, 10.64.0.2"),
        ("closed4", "protocol 6 from the tunnel's own address, 10.64.0.2"),
        ("udp4", "protocol 1 from the tunnel's own address, 10.64.0.2"),
        ("echo4", "protocol 1 from the tunnel's own address, 10.64.0.2"),
        ("open6", "protocol 6 from the tunnel's own address, fd00:64::2"),
        ("closed6", "protocol 6 from the tunnel's own address, fd00:64::2"),
        ("udp6", "protocol 58 from the tunnel's own address, fd00:64::2"),
        ("echo6", "protocol 58 from the tunnel's own address, fd00:64::2"),
    ];
    let it = LockedLab::new()?;
    tunnel_link(&it.lab)?;
    let _service = serve(&it.lab)?;
    it.lab.router.ip(&format!(
        "route add {TUNNEL_V4} via {CLIENT_V4}
         route add {TUNNEL_V6} via {CLIENT_V6}"
    ))?;
    let (v4, v6) = (TUNNEL_V4.to_string(), TUNNEL_V6.to_string());
    for (kind, class) in ANSWERS {
        it.until_shown(class, |lab| probe(lab, &v4, &v6, &[kind]))?;
    }
    it.lab.client.feed("nft", &["-f", "-"], PASSED)?;
    it.until_shown(ANSWERS[0].1, |lab| probe(lab, &v4, &v6, &[ANSWERS[0].0]))?;
    if passed(&it)? == 0 {
        return Err("the probe was not seen behind prerouting without the lock".into());
    }
    it.lock()?;
    for (kind, _) in ANSWERS {
        let (before, dropped) = (passed(&it)?, dropped_before_routing(&it)?);
        it.during(|lab| probe(lab, &v4, &v6, &[kind]))?.must_be_clean()?;
        if passed(&it)? != before || dropped_before_routing(&it)? == dropped {
            return Err(format!("{kind} was not dropped before conntrack and routing").into());
        }
    }
    Ok(())
}

/// Counts the probes that come past the lock's prerouting chain: conntrack and routing know them,
/// though no answer leaves.
const PASSED: &str = "table inet passed { chain prerouting {
    type filter hook prerouting priority -300
    ip daddr 10.64.0.2 iifname eth0 counter
    ip6 daddr fd00:64::2 iifname eth0 counter
    }
    }";

fn passed(it: &LockedLab) -> Result<u64> {
    let text =
        it.lab.client.command("timeout", &["60", "nft", "list", "table", "inet", "passed"])?;
    let counts = text.split("counter packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap_or_default().parse::<u64>().during(&text)).sum()
}

fn dropped_before_routing(it: &LockedLab) -> Result<u64> {
    let status = it.status()?;
    status.json["dropped"]["prerouting"]["blocked: tunnel address from outside"]["packets"]
        .as_u64()
        .ok_or_else(|| Error::new(format!("no such counter: {}", status.json["dropped"])))
}
