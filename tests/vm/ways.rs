//! The ways out that the machines' senders try, and how the decoder names what gets out by each.

use std::time::{Duration, Instant};

use killswitch::lab::Report;

use super::plan::Suite;

/// A way of sending: in words, and the end of the kind of its frames.
pub type Way = (&'static str, &'static str);

/// What tests/vm/guest/senders tries, ten times a second.
pub const SENDERS: &[Way] = &[
    ("UDP", "-> 1.1.1.1:53"),
    ("UDP over IPv6", "-> [2606:4700:4700::1111]:53"),
    ("TCP", "-> 8.8.8.8:443"),
    ("TCP over IPv6", "-> [2606:4700:4700::1111]:443"),
    ("ICMP", "-> 9.9.9.9"),
    ("UDP bound to the link", "-> 8.8.8.8:3478"),
    ("multicast", "-> 224.0.0.251:5353"),
    ("multicast over IPv6", "-> [ff02::fb]:5353"),
    ("a packet socket, IPv4", "192.0.2.1 -> 1.1.1.1:4000"),
    ("a packet socket, another protocol", "ethertype 0x88b5"),
];

/// What a container and a guest try.
pub const GUEST: &[Way] = &[
    ("ICMP of a guest", "-> 203.0.113.10"),
    ("UDP of a guest", "-> 203.0.113.10:53"),
    ("TCP of a guest", "-> 203.0.113.10:8080"),
];

/// What the routing guard alone does not stop: packet sockets and multicast from a socket bound to a
/// link (SECURITY.md, limits; threats 21 to 24). Parts of the frames' kinds.
pub const GUARD_ALONE: &[&str] =
    &["192.0.2.1 -> 1.1.1.1:4000", "ethertype 0x88b5", "-> 224.0.0.", "-> [ff02::", "-> ff02::"];

/// What may leave on these kernels, since they lack a layer.
pub type Excused = &'static [(Suite, &'static [&'static str])];

/// 6.1 lets no table outlive its owner, so anybody may flush it; the routing guard then holds alone.
pub const WHERE_ANYBODY_MAY_FLUSH: Excused = &[("bookworm", GUARD_ALONE)];

/// The same at shutdown, when the link has already given its lease back: what leaves by a link without
/// an address bears the tunnel's (SECURITY.md, limits; threat 71).
pub const WHERE_ANYBODY_MAY_FLUSH_AT_SHUTDOWN: Excused =
    &[("bookworm", GUARD_ALONE), ("bookworm", UNDER_THE_TUNNELS_ADDRESS)];

/// Multicast, and the question for the neighbour, of sockets bound to a link.
const UNDER_THE_TUNNELS_ADDRESS: &[&str] = &[
    "from the tunnel's own address, 10.64.0.2 -> 224.0.0.",
    "ARP from the tunnel's address 10.64.0.2",
];

/// Of one kernel.
pub fn excused(list: Excused, suite: Suite) -> Vec<&'static str> {
    list.iter()
        .filter(|(one, _)| *one == suite)
        .flat_map(|(_, kinds)| kinds.iter().copied())
        .collect()
}

/// Whether a frame of this kind is excused. One under the tunnel's address is, only if that is said.
pub fn is_excused(kind: &str, excused: &[&str]) -> bool {
    const OURS: &str = "tunnel's";
    excused.iter().any(|it| kind.contains(it) && kind.contains(OURS) == it.contains(OURS))
}

/// Those by which nothing was seen to get out.
pub fn missing(ways: &[&[Way]], seen: &Report) -> Vec<&'static str> {
    let unseen = |(_, kind): &&Way| !seen.leaked.keys().any(|it| it.ends_with(kind));
    ways.iter().flat_map(|some| some.iter()).filter(unseen).map(|(name, _)| *name).collect()
}

/// Looks until something has got out by each way, or for so long: all that was seen.
pub fn watch<E>(
    ways: &[&[Way]],
    patience: Duration,
    mut look: impl FnMut() -> Result<Report, E>,
) -> Result<Report, E> {
    let begin = Instant::now();
    let mut seen = look()?;
    while !missing(ways, &seen).is_empty() && begin.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(500));
        for (kind, count) in look()?.leaked {
            *seen.leaked.entry(kind).or_default() += count;
        }
    }
    Ok(seen)
}
