//! The chains of the egress guard.

use super::super::{Action, Base, Chain, ChainPolicy, Field, Hook, Rule};
use super::words::*;
use super::{Build, Devices, PROBE_ETHERTYPE, PROBE_MARK};
use crate::policy::GUEST_KINDS;

impl Build<'_> {
    /// What may be handed to a link's driver.
    pub(super) fn frames_chain(&self) -> Chain {
        let probe = is(Field::MetaMark, PROBE_MARK.to_ne_bytes());
        let mut rules = vec![
            rule(
                [is_loopback(Field::MetaOif), probe],
                Action::Drop,
                "probe of the guard on loopback",
            ),
            rule([is_loopback(Field::MetaOif)], Action::Accept, "loopback"),
        ];
        for link in self.tunnel_links() {
            rules.push(rule(link.outward(), Action::Accept, "tunnel"));
        }
        rules.extend(self.to_internal());
        if !self.policy.internal_ports.is_empty() {
            rules.extend(GUEST_KINDS.map(|kind| {
                rule(
                    [is_kind(Field::MetaOifkind, kind)],
                    Action::Jump("to_port".into()),
                    "ports of internal bridges",
                )
            }));
        }
        if self.policy.tunnel.is_some() {
            rules.push(rule(
                [is_ethernet()],
                Action::Jump("honest".into()),
                "is it of the type that it says",
            ));
        }
        rules.extend(self.tunnel_address_outside());
        rules.extend(self.frames_to_servers());
        rules.extend(self.to_lan());
        rules.extend(self.inbound_replies());
        if self.policy.tunnel.is_some() {
            rules.extend(self.address_resolution());
        }
        rules.extend(self.to_ntp());
        rules.extend(self.neighbours_and_leases());
        rules.push(rule(
            [is(Field::MetaProtocol, PROBE_ETHERTYPE.to_be_bytes())],
            Action::Drop,
            "probe of the guard",
        ));
        chain("frames", rules)
    }

    /// Returns a frame whose EtherType on the wire is the one that the kernel was told, which all
    /// other rules go by: a packet socket may tell any, and pass IP off as ARP (threat 69).
    ///
    /// Of a tagged frame the network header's place is told too: where a socket's own tag stands in
    /// it, its first byte is the tag's, which for IP must then be 0x40 or more; and where ARP says of
    /// which protocol the addresses are, the tag says ARP.
    pub(super) fn honest_chain(&self) -> Option<Chain> {
        self.policy.tunnel.as_ref()?;
        let says = |kind: u16| is(Field::MetaProtocol, kind.to_be_bytes());
        let on_wire = |kind: u16| is(Field::EtherType, kind.to_be_bytes());
        let in_tag = |kind: u16| is(Field::VlanType, kind.to_be_bytes());
        let mut rules: Vec<Rule> = [ETH_P_IP, ETH_P_IPV6, ETH_P_ARP, ETH_P_PAE]
            .into_iter()
            .map(|kind| rule([says(kind), on_wire(kind)], Action::Return, "untagged"))
            .collect();
        let low_priority = between(Field::VlanPriority, [0], [0x3f]);
        let tagged =
            |kind: u16| vec![says(kind), on_wire(ETH_P_8021Q), in_tag(kind), low_priority.clone()];
        for (kind, header) in [
            (ETH_P_IP, version(Ip::V4)),
            (ETH_P_IPV6, version(Ip::V6)),
            (ETH_P_ARP, is(Field::ArpProtocol, ETH_P_IP.to_be_bytes())),
        ] {
            rules.push(rule([tagged(kind), vec![header]].concat(), Action::Return, "tagged"));
        }
        rules.extend(self.log_blocked());
        rules.push(counted([], Action::Drop, "blocked: frame of another type than it says"));
        Some(chain("honest", rules))
    }

    /// As in the table, and the later fragments of an outer packet, which have no port (threat 43).
    pub(super) fn frames_to_servers(&self) -> Vec<Rule> {
        let mut rules = self.to_servers();
        for ip in BOTH.into_iter().filter(|&ip| self.has_server(ip)) {
            let mut matches = vec![self.mark()];
            matches.extend(self.of(ip, later_fragment(ip)));
            matches.push(concat([ip.daddr(), Field::MetaL4proto], &ip.set("server_host")));
            rules.push(rule(matches, Action::Accept, "fragment to a server"));
        }
        rules
    }

    pub(super) fn egress(&self, name: String, devices: Devices) -> Chain {
        let mut rules = vec![rule([], Action::Jump("frames".into()), "what may leave")];
        rules.extend(self.log_blocked());
        rules.push(counted([], Action::Drop, "blocked: frame"));
        Chain {
            name,
            base: Some(Base { devices, ..base(Hook::Egress, FILTER, ChainPolicy::Drop) }),
            rules,
        }
    }
}
