//! Reports as a test may find them.

use killswitch::evidence::{Record, What};
use killswitch::leaktest::report::{
    BUCKETS, Band, BandKind, FRAMES, Frame, Level, Machine, Phase, Probe, Report, SPANS, Span,
    Traffic, Verdict,
};

const CONFIGURATION: &str = "\
# /etc/killswitch.toml
[tunnel]
config = \"/etc/wireguard/wg0.conf\"

[allow]
lan = [\"192.168.1.0/24\"]
inbound = [{ proto = \"tcp\", port = 22, from = [\"192.168.1.0/24\"] }]

# /etc/wireguard/wg0.conf
[Interface]
PrivateKey = (removed)
Address = 10.64.0.2/32, fd00:64::2/128
DNS = 10.64.0.1
\t# a tab before this
";

/// Passive, on a clean machine.
pub fn held() -> Report {
    let duration_ms = 5_000;
    Report {
        format: 1,
        verdict: Verdict::Held,
        summary: "All 14 ways out were tried on eth0 and wlan0; nothing left but by the tunnel."
            .into(),
        began: 1_763_772_327,
        duration_ms,
        disrupted: false,
        machine: machine(),
        phases: vec![phase("passive", "nothing is disturbed", 0, duration_ms)],
        bands: vec![
            band(BandKind::Tunnel, "wg0", &[(duration_ms, Level::Good, "up")]),
            band(BandKind::Link, "eth0", &[(duration_ms, Level::Good, "up")]),
            band(BandKind::Link, "wlan0", &[(duration_ms, Level::Away, "down")]),
            band(BandKind::Daemon, "daemon", &[(duration_ms, Level::Good, "running")]),
            band(BandKind::Lock, "lock", &[(duration_ms, Level::Good, "intact")]),
        ],
        traffic: traffic(duration_ms, 50, |_| true),
        probes: probes(),
        limits: limits(),
        repeat: "killswitch leaktest --html report.html".into(),
    }
}

/// With everything disturbed on purpose.
pub fn disrupted() -> Report {
    let (down, up, killed, flushed, end) = (10_000, 40_000, 48_000, 54_000, 62_345);
    Report {
        summary: "The tunnel was cut, eth0 taken down for 30 s, the daemon killed and the table flushed; \
                  nothing left but by the tunnel."
            .into(),
        duration_ms: end,
        disrupted: true,
        phases: vec![
            phase("passive", "nothing is disturbed", 0, 5_000),
            phase("tunnel-cut", "the tunnel is cut", 5_000, down),
            phase("link-down", "eth0 is down", down, up),
            phase("link-up", "eth0 is up again", up, killed),
            phase("daemon-killed", "the daemon is killed", killed, flushed),
            phase("table-flushed", "the table is flushed", flushed, end),
        ],
        bands: vec![
            band(
                BandKind::Tunnel,
                "wg0",
                &[
                    (5_000, Level::Good, "up"),
                    (41_200, Level::Away, "down"),
                    (48_100, Level::Good, "up"),
                    (48_900, Level::Away, "down"),
                    (end, Level::Good, "up"),
                ],
            ),
            band(
                BandKind::Link,
                "eth0",
                &[(down, Level::Good, "up"), (up, Level::Away, "down"), (end, Level::Good, "up")],
            ),
            band(
                BandKind::Daemon,
                "daemon",
                &[(killed, Level::Good, "running"), (50_000, Level::Away, "killed"), (end, Level::Good, "running")],
            ),
            band(
                BandKind::Lock,
                "lock",
                &[
                    (flushed, Level::Good, "intact"),
                    (flushed + 40, Level::Bad, "flushed"),
                    (end, Level::Good, "intact"),
                ],
            ),
        ],
        traffic: traffic(end, 200, |at| !(5_000..41_200).contains(&at)),
        repeat: "killswitch leaktest --disrupt --html report.html".into(),
        ..held()
    }
}

/// The table was open for a while.
pub fn leaked() -> Report {
    let mut report = disrupted();
    report.verdict = Verdict::Leaked;
    report.summary =
        "38 frames left eth0 in clear while the table was flushed, by 2 of 14 ways out.".into();
    let flushed = 54_000;
    report.bands[3].spans[1].to_ms = 60_000;
    report.bands[3].spans[2].from_ms = 60_000;
    for (at, count) in [(270, 12), (271, 9), (272, 8), (275, 5), (281, 4)] {
        report.traffic.leaked[at] = count;
    }
    for (index, count, what) in [
        (1, 37, "udp 192.168.1.7:40000 -> 1.1.1.1:53"),
        (4, 1, "icmpv6 fe80::1 -> ff02::16 type 143"),
    ] {
        let probe = &mut report.probes[index];
        probe.verdict = Verdict::Leaked;
        probe.leaked = count;
        probe.refused = 0;
        probe.frames = (0..count.min(FRAMES as u64))
            .map(|at| Frame {
                at_ms: flushed + 211 * at,
                link: "eth0".into(),
                length: 71,
                what: what.into(),
            })
            .collect();
    }
    report.machine.degraded =
        vec!["the egress guard is not loaded: this kernel has no netdev egress chains".into()];
    report
}

/// Hardly anything could be tried, and every name is hostile.
pub fn cannot_tell() -> Report {
    let hostile = "<script>alert(1)</script>";
    let name = "x\" onmouseover=\"alert(1)";
    let mut report = held();
    report.verdict = Verdict::CannotTell;
    report.summary =
        format!("The link {hostile} cannot be watched: \u{202e}gnihton\u{1b}[2J was seen.");
    report.duration_ms = 480;
    report.phases = vec![phase(name, hostile, 0, 480)];
    report.bands = vec![
        band(BandKind::Link, name, &[(300, Level::Bad, hostile), (480, Level::Away, "\u{1b}[2J")]),
        band(BandKind::Link, "\u{202e}0hte", &[(480, Level::Good, "up")]),
        band(BandKind::Link, "שלום0", &[(480, Level::Good, "עולם")]),
    ];
    report.traffic =
        Traffic { width_ms: 50, tunnel: vec![0; 10], blocked: vec![0; 10], leaked: vec![0; 10] };
    for probe in &mut report.probes {
        probe.verdict = Verdict::CannotTell;
        probe.title = format!("{} on {name} {hostile}", probe.title);
        probe.reason = Some(format!(
            "no packet socket: \u{2066}{hostile}: Operation not permitted (os error 1)"
        ));
        probe.sent = 0;
        probe.refused = 0;
    }
    report.probes[2].verdict = Verdict::Allowed;
    report.probes[2].reason = Some("allow.lan".into());
    report.machine.system = format!("Debian {hostile}\r\n\u{85}");
    report.machine.state = "damaged".into();
    report.machine.degraded = vec![hostile.into(), "w".repeat(300)];
    report.machine.configuration =
        format!("{CONFIGURATION}\n</pre></style><h1>{hostile}\u{202e}\u{0}");
    report.limits = vec![format!("{hostile} {}", "very-long-name-without-a-space-".repeat(20))];
    report.repeat = format!("killswitch leaktest --link '{name}' # {hostile}");
    report
}

/// All that report.rs' bounds allow, and more than they say of the rest.
pub fn largest(words: &str) -> Report {
    let duration_ms = 3_600_000;
    let every = |number: usize| {
        let step = duration_ms / number as u64;
        (0..number as u64).map(move |index| (index * step, (index + 1) * step))
    };
    let spans = || -> Vec<Span> {
        let levels = [Level::Good, Level::Away, Level::Bad];
        every(SPANS)
            .zip(levels.into_iter().cycle())
            .map(|((from_ms, to_ms), level)| Span { from_ms, to_ms, level, state: words.into() })
            .collect()
    };
    let frame = |at_ms| Frame { at_ms, link: words.into(), length: 1500, what: words.into() };
    let probe = || Probe {
        name: words.into(),
        title: words.into(),
        threats: (0..=255).collect(),
        verdict: Verdict::Leaked,
        reason: Some(words.into()),
        sent: u64::MAX,
        refused: u64::MAX,
        tunnelled: u64::MAX,
        leaked: u64::MAX,
        frames: (0..FRAMES as u64).map(frame).collect(),
    };
    let mut report = leaked();
    report.duration_ms = duration_ms;
    report.summary = words.into();
    report.phases = every(300)
        .map(|(from_ms, to_ms)| Phase { name: words.into(), title: words.into(), from_ms, to_ms })
        .collect();
    report.bands = (0..60)
        .map(|_| Band { kind: BandKind::Link, name: words.into(), spans: spans() })
        .collect();
    let column = |index: usize| u64::MAX / (1 + index as u64 % 7);
    report.traffic = Traffic {
        width_ms: duration_ms / BUCKETS as u64,
        tunnel: (0..BUCKETS).map(column).collect(),
        blocked: (0..BUCKETS).map(column).collect(),
        leaked: (0..BUCKETS).map(column).collect(),
    };
    report.probes = (0..300).map(|_| probe()).collect();
    report.machine = Machine {
        system: words.into(),
        kernel: words.into(),
        architecture: words.into(),
        killswitch: words.into(),
        ruleset_sha256: words.into(),
        state: words.into(),
        degraded: vec![words.into(); 300],
        configuration: words.repeat(1000),
    };
    report.limits = vec![words.into(); 300];
    report.repeat = words.into();
    report
}

fn machine() -> Machine {
    Machine {
        system: "Debian GNU/Linux 13 (trixie)".into(),
        kernel: "6.12.48+deb13-amd64".into(),
        architecture: "x86_64".into(),
        killswitch: "0.1.0".into(),
        ruleset_sha256: "3f0a5b1f1c0f6d6f0a7c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f".into(),
        state: "connected".into(),
        degraded: Vec::new(),
        configuration: CONFIGURATION.into(),
    }
}

fn limits() -> Vec<String> {
    vec![
        "Links in other network namespaces were not watched: a container with a NIC of its own has none of this lock.".into(),
        "AF_XDP (threat 2) is not tried: it needs a program in the kernel.".into(),
    ]
}

fn phase(name: &str, title: &str, from_ms: u64, to_ms: u64) -> Phase {
    Phase { name: name.into(), title: title.into(), from_ms, to_ms }
}

/// Spans by their ends.
fn band(kind: BandKind, name: &str, ends: &[(u64, Level, &str)]) -> Band {
    let mut from_ms = 0;
    let spans = ends
        .iter()
        .map(|&(to_ms, level, state)| Span {
            from_ms: std::mem::replace(&mut from_ms, to_ms),
            to_ms,
            level,
            state: state.into(),
        })
        .collect();
    Band { kind, name: name.into(), spans }
}

fn traffic(duration_ms: u64, width_ms: u64, connected: impl Fn(u64) -> bool) -> Traffic {
    let columns = || (0..duration_ms.div_ceil(width_ms)).map(|index| (index, index * width_ms));
    Traffic {
        width_ms,
        tunnel: columns()
            .map(|(index, at)| if connected(at) { 300 + index * 7919 % 211 } else { 0 })
            .collect(),
        blocked: columns().map(|(index, _)| 20 + index * 104_729 % 17).collect(),
        leaked: columns().map(|_| 0).collect(),
    }
}

fn probes() -> Vec<Probe> {
    let probe =
        |name: &str, title: &str, threats: &[u8], sent: u64, refused: u64, tunnelled: u64| Probe {
            name: name.into(),
            title: title.into(),
            threats: threats.into(),
            verdict: Verdict::Held,
            reason: None,
            sent,
            refused,
            tunnelled,
            leaked: 0,
            frames: Vec::new(),
        };
    let mut probes = vec![
        probe("tcp", "TCP to 203.0.113.1 port 443, by eth0", &[5, 17], 40, 40, 0),
        probe("udp", "UDP to 1.1.1.1 port 53, from a socket bound to eth0", &[5, 50], 120, 120, 0),
        probe("quic", "UDP shaped like QUIC to port 443, by the routing table", &[5], 120, 0, 120),
        probe("icmp", "ICMP echo to 203.0.113.1", &[7], 20, 20, 0),
        probe("mld", "MLD reports by eth0", &[8], 4, 0, 0),
        probe("link-dns", "DNS to the resolver that eth0's DHCP named", &[12, 13], 20, 20, 0),
        probe("dot", "DNS over TLS to 1.1.1.1 port 853", &[13], 10, 10, 0),
        probe("mdns", "mDNS and LLMNR by eth0", &[14], 10, 10, 0),
        probe("ntp", "NTP to 162.159.200.1", &[], 10, 10, 0),
        probe("stun", "STUN to port 3478", &[16], 10, 10, 0),
        probe("packet-socket", "frames from a packet socket on eth0", &[1, 69], 50, 50, 0),
        probe("early", "a socket that was opened before the lock", &[18, 19], 30, 30, 0),
        probe("forwarded", "UDP from a throw-away namespace, forwarded", &[31, 32], 30, 0, 0),
        probe("server-port", "UDP to the server's address, port 443", &[6, 29], 20, 20, 0),
    ];
    probes[8].verdict = Verdict::Allowed;
    probes[8].reason = Some("allow.ntp names 162.159.200.1".into());
    probes[12].verdict = Verdict::CannotTell;
    probes[12].reason =
        Some("this kernel cannot make a namespace: Operation not permitted (os error 1)".into());
    probes
}

/// The end of [`journal`], as `killswitch evidence verify` prints it.
pub const HEAD: &str = "6:9d4e1e6b7a0c3f52c1d8e7f60a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b";

/// A journal; what others chose in it is hostile.
pub fn journal() -> Vec<serde_json::Map<String, serde_json::Value>> {
    let hostile = "<script>alert(1)</script>\u{202e}\u{1b}[2J";
    let hash = "3f0a5b1f1c0f6d6f0a7c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f";
    let happened = [
        What::DaemonStarted { version: "0.1.0".into(), ruleset: hash.into() },
        What::State {
            state: "connected".into(),
            tunnel: "connected".into(),
            locked: true,
            intact: true,
        },
        What::Degraded { reason: "w".repeat(300) },
        What::Tampered { layer: "tables".into(), pid: Some(4711), process: Some(hostile.into()) },
        What::Repaired { repairs: 1 },
        What::Failed { what: hostile.into(), why: "No space left on device (os error 28)".into() },
    ];
    let entry = |(before, what): (u64, What)| {
        let record = Record {
            time: 1_790_000_000,
            boot_id: "6f1c0e0a-5f5d-4d0b-9a53-0d6cfb8f3a52".into(),
            boottime_us: 81_000_000,
            writer: 812,
            what,
        };
        let value = serde_json::to_value(record).expect("a record");
        let mut entry = value.as_object().expect("an object").clone();
        entry.insert("seq".into(), (before + 1).into());
        entry.insert("previous".into(), hash.into());
        entry
    };
    (0..).zip(happened).map(entry).collect()
}
