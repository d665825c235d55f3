//! Every kind of finding.

use super::Kind;
use super::Severity::{Critical, Warning};

macro_rules! kinds {
    ($($name:ident $id:literal $severity:ident [$($threat:literal)*] $why:literal;)*) => {
        $(pub(super) const $name: Kind =
            Kind { id: $id, severity: $severity, why: $why, threats: &[$($threat),*] };)*

        /// Every kind of finding, the worst first.
        pub const KINDS: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    LOCK_OPEN "lock-open" Critical [21 53]
        "nothing is locked: everything may leave in clear";
    LOCK_DAMAGED "lock-damaged" Critical [21 23 27 28]
        "table inet killswitch is not what the configuration asks for: more may leave";
    EGRESS_MISSING "egress-guard-missing" Critical [1 4 13 14 39 40 41 42]
        "packet sockets, bridged guests and macvlan leave by this link unseen by the table";
    EGRESS_DAMAGED "egress-guard-damaged" Critical [1 4 13 14 39 40 41 42]
        "the egress guard is not what the configuration asks for: more may leave past the table";
    TC_REDIRECT "tc-redirect" Critical [3]
        "a redirect by tc(8) hands packets to a link past every rule";
    AF_XDP_SOCKET "af-xdp-socket" Critical [2]
        "an AF_XDP socket sends frames past every rule, the egress guard too";
    LINK_ELSEWHERE "link-elsewhere" Critical [15]
        "hardware in another network namespace has no lock: what runs there sends in clear";
    LOCK_UNIT_NOT_ENABLED "lock-unit-not-enabled" Critical [53 59]
        "nothing locks at the next boot: what starts first sends in clear";
    FILE_WRITABLE "file-writable" Critical [65]
        "who is not root can change what root runs or reads for the lock";
    INITRD_NETWORK "initrd-network" Critical [54]
        "the initrd brings the network up before anything locks";
    CONFIGURATION_REFUSED "configuration-refused" Warning [27 65]
        "the configuration cannot be used: the next lock at boot is the strictest, without a tunnel";
    LOCK_DEGRADED "lock-degraded" Warning []
        "the lock or the daemon says that something is weaker than asked";
    EGRESS_OFF "egress-guard-off" Warning [1 4 8 13 14]
        "without the egress guard packet sockets, bridged guests and macvlan are not stopped";
    KERNEL_WITHOUT_EGRESS "kernel-without-egress" Warning [1 4 13 14]
        "before Linux 5.16 nothing stops packet sockets, bridged guests and macvlan";
    ROUTING_DAMAGED "routing-guard-damaged" Warning [49 51]
        "the routing guard does not hold: if the table goes, everything may leave";
    DAEMON_NOT_RUNNING "daemon-not-running" Warning [21 23 25]
        "nobody owns or watches the lock: what others change stays changed";
    TABLE_NOT_OWNED "table-not-owned" Warning [21 23]
        "the table has no owner though this kernel can: others can flush it";
    MARK_SET "mark-set" Warning [29]
        "another table gives packets the tunnel's mark, which takes them past the routing guard";
    MARK_RESTORED "mark-restored" Warning [29]
        "another table restores marks of connections, the tunnel's mark too, on what leaves";
    DNAT_OUTPUT "dnat-output" Warning [34 35]
        "another table sends what this machine sends elsewhere: only the last hook still stops it";
    NFT_FORWARD "nft-forward" Warning [4]
        "another table hands packets to a link: only the egress guard there still stops them";
    FLOWTABLE "flowtable" Warning [16]
        "flows in a flowtable pass by the table: only the egress guard still stops them";
    ROUTE_CHAIN "route-chain" Warning [36]
        "another table routes packets anew after they were judged: only the last hook still stops them";
    IPTABLES_LEGACY "iptables-legacy" Warning [29 34 35]
        "rules of iptables-legacy may set marks and destinations, and nft does not show them";
    XDP_PROGRAM "xdp-program" Warning [2]
        "an XDP program can send what arrives out again past every rule";
    TC_FILTER "tc-filter" Warning [3]
        "a filter of tc(8) may change packets after they were judged, or redirect them";
    CHILD_ELSEWHERE "child-elsewhere" Warning [14]
        "a link on top of ours in another namespace is stopped by the egress guard alone";
    CONTAINER_HOST_NETWORK "container-host-network" Warning [1 15]
        "a container with this machine's network and such capabilities can send past the table, or open it";
    CAPABILITY "capability" Warning [1 2 3 21 30]
        "a process that is not root may open any lock (CAP_NET_ADMIN) or send frames (CAP_NET_RAW)";
    PACKET_SOCKET "packet-socket" Warning [1 70]
        "a packet socket's frames pass by the table: only the egress guard still stops them";
    SRC_VALID_MARK "src-valid-mark" Warning [52]
        "a strict rp_filter that does not look at marks drops the server's replies";
    ARP_IGNORE "arp-ignore" Warning [8]
        "this machine answers ARP for the address inside the tunnel: who is on the LAN learns it";
    ROUTE_LOCALNET "route-localnet" Warning [35]
        "addresses of loopback are routed on a link that leaves this machine";
    RULE_BEFORE_GUARD "rule-before-guard" Warning [45 49]
        "a policy rule before the routing guard decides first: if the table goes, its packets leave";
    ROGUE_ROUTE "rogue-route" Warning [45 49]
        "a route in table local, before the tunnel's, leads elsewhere: if the table goes, its packets leave";
    RESOLVER_OUTSIDE "resolver-outside" Warning [48 67]
        "names are looked up at a resolver that is not the tunnel's";
    AT_BOOT_OFF "at-boot-off" Warning [53]
        "the configuration does not lock at boot: until the daemon runs, everything may leave";
    LOCK_UNIT_FAILED "lock-unit-failed" Warning [53]
        "the lock at boot has failed: what sent before the daemon ran, sent in clear";
    DAEMON_UNIT_NOT_ENABLED "daemon-unit-not-enabled" Warning [23]
        "after the next boot nobody owns or watches the lock";
    EARLY_UNIT "early-unit" Warning [56]
        "this unit may use the network before the lock is on";
    NFTABLES_FLUSH "nftables-flush" Warning [55]
        "at boot nftables.service flushes every table that nobody owns";
    CLOCK_BEHIND "clock-behind" Warning []
        "the clock is behind: WireGuard's servers refuse handshakes older than the last one";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_and_can_be_typed() {
        let ids: BTreeSet<&str> = KINDS.iter().map(|kind| kind.id).collect();
        assert_eq!(ids.len(), KINDS.len());
        let plain = |id: &str| id.bytes().all(|it| it.is_ascii_lowercase() || it == b'-');
        assert!(ids.iter().all(|id| plain(id)));
        assert!(KINDS.is_sorted_by_key(|kind| kind.severity));
    }
}
