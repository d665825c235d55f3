//! What an event is about, by its kind and the few fields that say whether it concerns us.

use std::collections::BTreeSet;

use super::{Change, Culprit};
use crate::netlink::{self, Attributes, Message};
use crate::routing;
use crate::ruleset::{Family, TABLE};

/// RTM_* (include/uapi/linux/rtnetlink.h).
mod rtm {
    pub const NEWLINK: u16 = 16;
    pub const DELLINK: u16 = 17;
    pub const NEWADDR: u16 = 20;
    pub const DELADDR: u16 = 21;
    pub const NEWROUTE: u16 = 24;
    pub const DELROUTE: u16 = 25;
    pub const NEWRULE: u16 = 32;
    pub const DELRULE: u16 = 33;
}

/// An event of rtnetlink; `own`: ports whose changes of rules and of our table are our own.
pub(super) fn route(change: &mut Change, message: &Message, own: &BTreeSet<u32>) {
    let foreign = || !own.contains(&message.port);
    match message.kind {
        rtm::NEWLINK | rtm::DELLINK | rtm::NEWADDR | rtm::DELADDR => change.network = true,
        rtm::NEWROUTE | rtm::DELROUTE => match route_table(&message.payload) {
            // The kernel itself takes the tunnel's routes with its link, of which another event
            // tells. An IPv6 route that refuses hangs on loopback and goes whenever IPv6 is switched
            // off there, as NetworkManager does when it lets go of a link (addrconf_ifdown).
            Some((routing::TABLE, _)) => {
                let by_the_kernel = message.port == 0;
                change.rules |= foreign() && (!by_the_kernel || refuses(&message.payload));
            }
            // Only a default route can be the way out.
            Some((_, 1..)) => {}
            Some((_, 0)) | None => change.network = true,
        },
        rtm::NEWRULE | rtm::DELRULE => {
            change.rules |= may_be_ours(&message.payload) && foreign();
        }
        _ => {}
    }
}

/// The route's table and the length of its destination, from `rtmsg`: family, destination's length,
/// source's length, TOS, table; RTA_TABLE where that does not fit.
fn route_table(payload: &[u8]) -> Option<(u32, u8)> {
    const HEADER: usize = 12;
    const RTA_TABLE: u16 = 15;
    let attributes = payload.get(HEADER..)?;
    let long = Attributes(attributes)
        .get(RTA_TABLE)
        .and_then(|it| it.try_into().ok().map(u32::from_ne_bytes));
    Some((long.unwrap_or(u32::from(payload[4])), payload[1]))
}

/// Whether the type in `rtmsg` is RTN_UNREACHABLE.
fn refuses(payload: &[u8]) -> bool {
    const RTN_UNREACHABLE: u8 = 7;
    payload.get(7) == Some(&RTN_UNREACHABLE)
}

/// Whether a rule (`fib_rule_hdr` and attributes) has a preference of ours, or none that can be read.
fn may_be_ours(payload: &[u8]) -> bool {
    const HEADER: usize = 12;
    const FRA_PRIORITY: u16 = 6;
    let preference = Attributes(payload.get(HEADER..).unwrap_or_default())
        .get(FRA_PRIORITY)
        .and_then(|it| it.try_into().ok().map(u32::from_ne_bytes));
    preference.is_none_or(|it| routing::PREFERENCES.contains(&it))
}

/// What has been seen of a transaction of nf_tables: its messages come first, and then one that
/// says whose it was.
#[derive(Default)]
pub(super) struct Transaction {
    touches_ours: bool,
}

impl Transaction {
    /// Whoever changed a table of ours, at the end of the transaction; `own`: ports that are ours.
    pub(super) fn event(&mut self, message: &Message, own: &BTreeSet<u32>) -> Option<Culprit> {
        const NFNL_SUBSYS_NFTABLES: u16 = 10;
        const NFT_MSG_NEWGEN: u16 = 15;
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || own.contains(&message.port) {
            return None;
        }
        if message.kind & 0xff != NFT_MSG_NEWGEN {
            self.touches_ours |= is_of_our_table(&message.payload);
            return None;
        }
        std::mem::take(&mut self.touches_ours).then(|| culprit(&message.payload))
    }
}

/// `nfgenmsg`: family, version, id; and every kind of message has the table's name first
/// (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, ... are all 1).
fn is_of_our_table(payload: &[u8]) -> bool {
    let ours = [Family::Inet, Family::Netdev].map(Family::number);
    payload.first().is_some_and(|family| ours.contains(family))
        && attributes(payload)
            .get(1)
            .is_some_and(|it| it.strip_suffix(&[0]) == Some(TABLE.as_bytes()))
}

fn culprit(payload: &[u8]) -> Culprit {
    const NFTA_GEN_PROC_PID: u16 = 2;
    const NFTA_GEN_PROC_NAME: u16 = 3;
    let attributes = attributes(payload);
    let pid = attributes.get(NFTA_GEN_PROC_PID).and_then(|value| value.try_into().ok());
    match (pid, attributes.get(NFTA_GEN_PROC_NAME)) {
        (Some(pid), Some(name)) => {
            Culprit::Process { pid: u32::from_be_bytes(pid), name: netlink::text(name) }
        }
        _ => Culprit::Unknown,
    }
}

fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes(payload.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, port: u32, payload: &[u8]) -> Message {
        Message { kind, flags: 0, sequence: 0, port, payload: payload.to_vec() }
    }

    /// `rtmsg` of a table, with RTA_TABLE.
    fn route_in(table: u32, destination_length: u8) -> Vec<u8> {
        let mut payload = vec![2, destination_length, 0, 0, 252, 0, 0, 1, 0, 0, 0, 0, 8, 0, 15, 0];
        payload.extend(table.to_ne_bytes());
        payload
    }

    fn seen(kind: u16, port: u32, payload: &[u8]) -> (bool, bool) {
        let mut change = Change::default();
        route(&mut change, &message(kind, port, payload), &[7].into());
        (change.network, change.rules)
    }

    #[test]
    fn routes_count_by_their_table_and_destination() {
        assert_eq!(seen(rtm::NEWROUTE, 0, &route_in(254, 0)), (true, false));
        assert_eq!(seen(rtm::DELROUTE, 0, &route_in(254, 24)), (false, false));
        assert_eq!(seen(rtm::DELROUTE, 8, &route_in(routing::TABLE, 24)), (false, true));
        // Gone with its link.
        assert_eq!(seen(rtm::DELROUTE, 0, &route_in(routing::TABLE, 24)), (false, false));
        let mut refusing = route_in(routing::TABLE, 0);
        refusing[7] = 7;
        assert_eq!(seen(rtm::DELROUTE, 0, &refusing), (false, true));
        assert_eq!(seen(rtm::NEWROUTE, 7, &refusing), (false, false));
        assert_eq!(seen(rtm::DELROUTE, 7, &route_in(routing::TABLE, 0)), (false, false));
        // What cannot be read may be anything.
        assert_eq!(seen(rtm::DELROUTE, 0, &[2, 9]), (true, false));
    }

    /// `fib_rule_hdr` with FRA_PRIORITY.
    fn rule_of(preference: u32) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0, 8, 0, 6, 0];
        payload.extend(preference.to_ne_bytes());
        payload
    }

    #[test]
    fn rules_count_unless_they_are_our_own() {
        assert_eq!(seen(rtm::DELRULE, 0, &rule_of(27590)), (false, true));
        assert_eq!(seen(rtm::DELRULE, 7, &rule_of(27590)), (false, false));
        assert_eq!(seen(rtm::NEWRULE, 0, &rule_of(32765)), (false, false));
        assert_eq!(seen(rtm::DELRULE, 0, &[]), (false, true));
        assert_eq!(seen(rtm::NEWRULE, 8, &[]), (false, true));
        assert_eq!(seen(rtm::NEWRULE, 7, &[]), (false, false));
    }

    /// `nfgenmsg` and the table's name.
    fn of_table(family: u8, name: &str) -> Vec<u8> {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend((5 + name.len() as u16).to_ne_bytes());
        payload.extend([1, 0]);
        payload.extend(name.as_bytes());
        payload.push(0);
        payload
    }

    #[test]
    fn a_transaction_counts_if_it_touches_our_table() {
        const NEWRULE: u16 = 10 << 8 | 6;
        const NEWGEN: u16 = 10 << 8 | 15;
        let mut end = vec![0, 0, 0, 0, 8, 0, 2, 0, 0, 0, 1, 2, 8, 0, 3, 0];
        end.extend(b"nft\0");
        let by = |family, name: &str, port| {
            let mut transaction = Transaction::default();
            let rule = message(NEWRULE, port, &of_table(family, name));
            assert_eq!(transaction.event(&rule, &[7].into()), None);
            let culprit = transaction.event(&message(NEWGEN, port, &end), &[7].into());
            // The next one is not blamed for it.
            assert_eq!(transaction.event(&message(NEWGEN, 9, &end), &[7].into()), None);
            culprit
        };
        let nft = Some(Culprit::Process { pid: 258, name: "nft".into() });
        assert_eq!(by(1, TABLE, 1), nft);
        assert_eq!(by(5, TABLE, 1), nft);
        assert_eq!(by(1, TABLE, 7), None);
        assert_eq!(by(2, TABLE, 1), None);
        assert_eq!(by(1, "killswitch2", 1), None);
    }
}
