//! What hangs on links, here and in other network namespaces.

use super::known;
use crate::audit::kinds::*;
use crate::audit::{Facts, Found, Unknown, Wanted};

pub(super) fn xdp(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let mut found = Found::default();
    for link in known(&facts.attached)?.iter().filter(|link| link.xdp.is_some()) {
        let number = link.xdp.filter(|&number| number != 0);
        let program = number.map(|number| format!(", program {number}")).unwrap_or_default();
        let cure = format!("ip link set dev {} xdp off", link.name);
        found.find(&XDP_PROGRAM, format!("link {}{program}", link.name), cure);
    }
    Ok(found)
}

pub(super) fn filters(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let links = known(&facts.attached)?;
    let mut found = Found::default();
    for filter in known(&facts.filters)? {
        let link = links.iter().find(|link| link.link == filter.link);
        let name = link.map_or("a link that is gone", |link| &link.name);
        let kind = if filter.redirects { &TC_REDIRECT } else { &TC_FILTER };
        let cure = format!("tc qdisc show dev {name}; tc qdisc del dev {name} clsact");
        found.find(kind, format!("link {name}: filter {}", filter.kind), cure);
    }
    Ok(found)
}

/// Tunnels that were made here and moved are no matter: their outer packets leave from here.
const ON_TOP: [&str; 6] = ["macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"];

pub(super) fn elsewhere(facts: &Facts, _: &Wanted) -> Result<Found, Unknown> {
    let links = known(&facts.attached)?;
    let mut found = Found::default();
    for link in known(&facts.elsewhere)? {
        let what = format!("link {} in the network namespace of {}", link.link, link.holder);
        match (link.kind.as_deref(), link.parent) {
            (None, _) => {
                let cure = format!("ip link set dev {} netns 1, from there", link.link);
                found.find(&LINK_ELSEWHERE, what, cure);
            }
            (Some(kind), Some(parent)) if ON_TOP.contains(&kind) => {
                let below = links.iter().find(|it| it.link == parent).map_or("?", |it| &it.name);
                let cure = format!("ip link del dev {}, from there", link.link);
                found.find(&CHILD_ELSEWHERE, format!("{what}, a {kind} on {below}"), cure);
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, ids, wanted};
    use crate::audit::facts::Elsewhere;
    use crate::netlink::Filter;

    #[test]
    fn what_hangs_on_a_link_is_found() {
        let mut it = facts();
        it.attached.as_mut().unwrap()[1].xdp = Some(7);
        assert_eq!(ids(&it, &wanted()), ["xdp-program"]);
        let filter = Filter { link: 2, kind: "bpf".into(), redirects: false };
        let mut it = facts();
        it.filters = Ok(vec![filter.clone()]);
        assert_eq!(ids(&it, &wanted()), ["tc-filter"]);
        it.filters = Ok(vec![Filter { redirects: true, ..filter }]);
        assert_eq!(ids(&it, &wanted()), ["tc-redirect"]);
    }

    #[test]
    fn hardware_elsewhere_is_worse_than_what_hangs_on_ours() {
        let link = |kind: &str, parent| Elsewhere {
            link: "eth1".into(),
            kind: (!kind.is_empty()).then(|| kind.into()),
            parent,
            holder: "process 1".into(),
        };
        let mut it = facts();
        it.elsewhere = Ok(vec![link("", None)]);
        assert_eq!(ids(&it, &wanted()), ["link-elsewhere"]);
        it.elsewhere = Ok(vec![link("macvlan", Some(2))]);
        assert_eq!(ids(&it, &wanted()), ["child-elsewhere"]);
        it.elsewhere = Ok(vec![link("veth", Some(2)), link("wireguard", Some(2))]);
        assert_eq!(ids(&it, &wanted()), [""; 0]);
    }
}
