//! The first judge: the model that `explain` asks.

use killswitch::policy::Policy;
use killswitch::ruleset::model::{self, Connection, LinkView, State, Verdict};
use killswitch::ruleset::{Ruleset, compile, guard};

use crate::packet::{Body, History, LOOPBACK, Link, Packet, Ports, Way, is_behind};

pub fn ruleset(policy: &Policy) -> Ruleset {
    Ruleset { inet: compile(policy), egress: policy.egress_guard.then(|| guard(policy, None)) }
}

/// Whether the model lets it pass.
pub fn may_pass(ruleset: &Ruleset, packet: &Packet, way: Way) -> bool {
    let view = view(packet, way);
    let decision = match way {
        Way::Sent(_) => ruleset.judge_sent(&view),
        Way::Received(_) => ruleset.judge_received(&view),
        Way::Forwarded(..) => ruleset.judge_forwarded(&view),
        Way::Frame(_) => ruleset.judge_frame(&view),
    };
    decision.verdict == Verdict::Accept
}

fn view(packet: &Packet, way: Way) -> model::Packet {
    let (iif, oif) = match way {
        Way::Sent(out) | Way::Frame(out) => (None, Some(out)),
        Way::Received(from) => (Some(from), None),
        Way::Forwarded(from, out) => (Some(from), Some(out)),
    };
    model::Packet {
        ethertype: packet.ethertype,
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol().unwrap_or_default(),
        ports: packet.ports().map(|Ports { from, to }| (from, to)),
        icmp_type: match packet.body {
            Body::Icmp(_, kind, _) => Some(kind),
            _ => None,
        },
        hop_limit: packet.hop_limit,
        later_fragment: false,
        payload: match &packet.body {
            Body::Udp(_, payload) => payload.clone(),
            _ => Vec::new(),
        },
        mark: packet.mark,
        iif: iif.map(link),
        oif: oif.map(link),
        from_this_machine: oif.is_some_and(|out| packet.is_from_this_machine(out)),
        to_this_machine: packet.is_to_this_machine(),
        from_where_it_came: iif.is_some_and(|from| packet.comes_from(from, way)),
        to_where_it_came: iif.is_some_and(|from| is_behind(packet.destination, from, way)),
        connection: connection(packet),
    }
}

fn link(link: Link) -> LinkView {
    LinkView { name: link.name.into(), kind: link.kind.map(Into::into), loopback: link == LOOPBACK }
}

fn connection(packet: &Packet) -> Option<Connection> {
    let (state, original) = match packet.history {
        History::None => return None,
        History::Reply => {
            let port = packet.ports().map_or(0, |ports| ports.from);
            (State::Established, (packet.source, packet.protocol()?, port))
        }
        History::ErrorAbout(address, protocol, port) => (State::Related, (address, protocol, port)),
    };
    Some(Connection { state, reply: true, dnat: false, original })
}
