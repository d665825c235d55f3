//! Numbers for Prometheus, in the format of node_exporter's textfile collector
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write;

use serde::Serialize;

use crate::lock::{State, Status};

/// Samples of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Family {
    /// Its name; of a counter ends in `_total`.
    pub name: &'static str,
    /// "gauge" or "counter".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
    /// What was measured.
    pub samples: Vec<Sample>,
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: u64,
}

/// What is known besides the kernel's state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Besides {
    /// How often others' changes were undone since the daemon started; `None`: it does not run.
    pub repairs: Option<u64>,
    /// The number of the journal's last entry.
    pub evidence_seq: Option<u64>,
}

/// Every number; of a kernel that cannot be read, only that.
pub fn families(status: Option<&Status>, besides: Besides) -> Vec<Family> {
    let mut all = vec![
        one("killswitch_up", "gauge", "Whether the lock could be read.", status.is_some().into()),
        info(),
    ];
    if let Some(status) = status {
        all.extend(of_status(status));
    }
    if let Some(repairs) = besides.repairs {
        let help = "Changes by others that the daemon undid since it started.";
        all.push(one("killswitch_repairs_total", "counter", help, repairs));
    }
    if let Some(seq) = besides.evidence_seq {
        let help = "Entries of the evidence journal since it began.";
        all.push(one("killswitch_evidence_entries_total", "counter", help, seq));
    }
    all
}

fn info() -> Family {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let samples = vec![Sample { labels: vec![("version", version)], value: 1 }];
    family("killswitch_info", "gauge", "The program.", samples)
}

fn of_status(status: &Status) -> Vec<Family> {
    let layers = &status.layers;
    let mut all = vec![
        state(status.state),
        one("killswitch_locked", "gauge", "Whether the table is there.", status.locked.into()),
        one(
            "killswitch_intact",
            "gauge",
            "Whether every layer is what the configuration compiles to.",
            status.intact.into(),
        ),
        one(
            "killswitch_degraded_reasons",
            "gauge",
            "How many things are weaker than asked.",
            status.degraded.len() as u64,
        ),
        one("killswitch_daemon_up", "gauge", "Whether the daemon runs.", status.daemon.into()),
        one(
            "killswitch_table_owned",
            "gauge",
            "Whether nobody but the daemon can change the table.",
            layers.owned.into(),
        ),
        one(
            "killswitch_egress_guarded_links",
            "gauge",
            "Links with an egress guard.",
            layers.egress.len() as u64,
        ),
        one(
            "killswitch_exceptions",
            "gauge",
            "What is open for a while.",
            status.exceptions.len() as u64,
        ),
    ];
    all.extend(of_tunnel(status));
    all.extend(dropped(status));
    all
}

/// One of them is 1, as of an enumeration.
fn state(state: State) -> Family {
    let all = [
        (State::Connected, "connected"),
        (State::Connecting, "connecting"),
        (State::Blocked, "blocked"),
        (State::Open, "open"),
        (State::Damaged, "damaged"),
    ];
    let samples = all.into_iter().map(|(it, name)| Sample {
        labels: vec![("state", name.to_owned())],
        value: (it == state).into(),
    });
    family("killswitch_state", "gauge", "The state, as status says it.", samples.collect())
}

fn of_tunnel(status: &Status) -> Vec<Family> {
    let Some(tunnel) = &status.tunnel else { return Vec::new() };
    let labelled =
        |value| vec![Sample { labels: vec![("interface", tunnel.interface.clone())], value }];
    let mut all = vec![
        family(
            "killswitch_tunnel_up",
            "gauge",
            "Whether the tunnel's link is up.",
            labelled(tunnel.up.into()),
        ),
        family(
            "killswitch_tunnel_receive_bytes_total",
            "counter",
            "Bytes received through the tunnel.",
            labelled(tunnel.rx_bytes),
        ),
        family(
            "killswitch_tunnel_transmit_bytes_total",
            "counter",
            "Bytes sent through the tunnel.",
            labelled(tunnel.tx_bytes),
        ),
    ];
    all.extend(tunnel.last_handshake_age_s.map(|age| {
        family(
            "killswitch_tunnel_handshake_age_seconds",
            "gauge",
            "Seconds since the last handshake.",
            labelled(age),
        )
    }));
    all
}

fn dropped(status: &Status) -> [Family; 2] {
    let samples = |value: fn(&crate::netfilter::Counted) -> u64| {
        let chains = status.dropped.iter();
        let all = chains.flat_map(|(chain, reasons)| {
            reasons.iter().map(move |(reason, counted)| Sample {
                labels: vec![("chain", chain.clone()), ("reason", reason.clone())],
                value: value(counted),
            })
        });
        all.collect::<Vec<_>>()
    };
    [
        family(
            "killswitch_dropped_packets_total",
            "counter",
            "Packets that the lock dropped or refused.",
            samples(|it| it.packets),
        ),
        family("killswitch_dropped_bytes_total", "counter", "Their bytes.", samples(|it| it.bytes)),
    ]
}

fn family(
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
) -> Family {
    Family { name, kind, help, samples }
}

fn one(name: &'static str, kind: &'static str, help: &'static str, value: u64) -> Family {
    family(name, kind, help, vec![Sample { labels: Vec::new(), value }])
}

/// As Prometheus reads it.
pub fn text(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families.iter().filter(|it| !it.samples.is_empty()) {
        let Family { name, kind, help, samples } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for Sample { labels, value } in samples {
            let labels: Vec<String> =
                labels.iter().map(|(key, it)| format!("{key}=\"{}\"", escaped(it))).collect();
            let labels = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

/// Another program may have put anything into our chains' comments.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let labels = vec![("reason", "a \"b\" \\ c\nd".to_owned())];
        let all = [family("x_total", "counter", "X.", vec![Sample { labels, value: 7 }])];
        assert_eq!(
            text(&all),
            "# HELP x_total X.\n# TYPE x_total counter\n\
             x_total{reason=\"a \\\"b\\\" \\\\ c\\nd\"} 7\n"
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_locked() {
        let text = text(&families(None, Besides::default()));
        assert!(text.contains("\nkillswitch_up 0\n") && !text.contains("locked"), "{text}");
    }
}
