//! What `plan` says of a change.

use killswitch::lab::harness::Outcome;
use serde_json::Value;

use crate::machine::{Machine, TUNNEL};

/// (key, a line of it, words of the change in the table)
const LOOSENING: [(&str, &str, &str); 5] = [
    ("LAN", "[allow]\nlan = [\"192.168.1.0/24\"]", "192.168.1.0/24"),
    ("NTP", "[allow]\nntp = [\"192.0.2.123\"]", "192.0.2.123"),
    (
        "inbound",
        "[allow]\ninbound = [{ proto = \"tcp\", port = 2222, from = [\"192.0.2.0/24\"] }]",
        "2222",
    ),
    (
        "server",
        "[[server]]\nname = \"b\"\nendpoints = [\"192.0.2.7:51820\"]\n\
         public_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"",
        "192.0.2.7",
    ),
    ("forwarding", "[forward]\nmode = \"tunnel\"", "forward"),
];

fn changes(machine: &Machine) -> Result<Vec<Value>, killswitch::lab::Error> {
    let plan = machine.killswitch(&["--json", "plan"])?.exits(0).json();
    Ok(plan["changes"].as_array().cloned().unwrap_or_default())
}

/// Without what decides nothing alone, such as the name services closed to a LAN that is opened.
fn effects(changes: &[Value], added: bool) -> Vec<(&str, &str)> {
    changes
        .iter()
        .filter(|it| it["added"] == added && it["effect"] != "neutral")
        .filter_map(|it| Some((it["effect"].as_str()?, it["text"].as_str()?)))
        .collect()
}

pub fn more_loosens_and_less_tightens() -> Outcome {
    for (what, more, words) in LOOSENING {
        let machine = Machine::new()?;
        machine.killswitch(&["lock"])?.exits(0);
        machine.configure(&format!("{TUNNEL}\n{more}\n"))?;
        let adding = changes(&machine)?;
        let added = effects(&adding, true);
        assert!(!added.is_empty() && effects(&adding, false).is_empty(), "{what}: {adding:?}");
        assert!(added.iter().all(|(effect, _)| *effect == "loosens"), "{what}: {added:?}");
        let named = adding.iter().any(|it| it.to_string().contains(words));
        assert!(named, "{what}: no {words} in {adding:?}");
        let text = machine.killswitch(&["plan"])?.exits(0).out;
        assert!(text.lines().any(|line| line.starts_with("loosens  +")), "{what}: {text}");
        machine.killswitch(&["reload"])?.exits(0);
        assert_eq!(changes(&machine)?, Vec::<Value>::new(), "{what}");

        machine.configure(TUNNEL)?;
        let removing = changes(&machine)?;
        let removed = effects(&removing, false);
        assert!(!removed.is_empty() && effects(&removing, true).is_empty(), "{what}: {removing:?}");
        assert!(removed.iter().all(|(effect, _)| *effect == "tightens"), "{what}: {removed:?}");
        machine.killswitch(&["plan", "--exit-code"])?.exits(3);
        machine.killswitch(&["reload"])?.exits(0);
        assert_eq!(changes(&machine)?, Vec::<Value>::new(), "{what}");
    }
    Ok(())
}

/// A script that reloads only what loosens nothing need not read the words.
pub fn the_exit_status_tells_the_effect() -> Outcome {
    let machine = Machine::new()?;
    let ntp = format!("{TUNNEL}\n[allow]\nntp = [\"192.0.2.123\"]\n");
    let plan = |code| -> Outcome {
        for arguments in [&["plan", "--exit-code"][..], &["--json", "plan", "--exit-code"]] {
            machine.killswitch(arguments)?.exits(code);
        }
        Ok(())
    };
    plan(3)?;
    machine.killswitch(&["lock"])?.exits(0);
    plan(0)?;
    machine.configure(&ntp)?;
    plan(5)?;
    // Without the option a plan that could be made is a success.
    machine.killswitch(&["plan"])?.exits(0);
    machine.killswitch(&["reload"])?.exits(0);
    plan(0)?;
    machine.configure(TUNNEL)?;
    plan(3)?;
    // One that does both loosens.
    machine.configure(&ntp.replace("192.0.2.123", "192.0.2.124"))?;
    plan(5)?;
    Ok(())
}

pub fn what_others_did_is_shown() -> Outcome {
    /// What is done, the change that mends it, whether that adds something.
    const DEEDS: [(&str, &str, bool); 7] = [
        ("insert rule inet killswitch output accept", "accept", false),
        (
            "insert rule inet killswitch output ip daddr { 1.1.1.1, 8.8.8.8 } accept",
            "accept",
            false,
        ),
        ("insert rule inet killswitch output limit rate 10/second accept", "foreign", false),
        ("flush chain inet killswitch postrouting", "counter drop", true),
        ("delete table inet killswitch; table inet killswitch", "policy drop", true),
        (
            "add chain inet killswitch door { type filter hook output priority -5; policy accept; }",
            "priority -5",
            false,
        ),
        ("add element inet killswitch wireguard4 { 1.1.1.1 . 53 }", "1.1.1.1", false),
    ];
    for (deed, words, adds) in DEEDS {
        let machine = Machine::new()?;
        machine.killswitch(&["lock"])?.exits(0);
        machine.nft(&deed.replace("; table", "\ntable"))?;
        let planned = changes(&machine)?;
        let found = planned.iter().any(|it| {
            it["added"] == adds
                && it["effect"] != "loosens"
                && it["text"].as_str().unwrap_or_default().contains(words)
        });
        assert!(found, "{deed}: no {words} in {planned:?}");
        let tightens = planned.iter().any(|it| it["effect"] == "tightens");
        assert!(tightens || deed.contains("policy accept"), "{deed}: {planned:?}");
        machine.killswitch(&["status"])?.exits(30);
        machine.killswitch(&["reload"])?.exits(0);
        machine.killswitch(&["status"])?.exits(10);
        assert_eq!(changes(&machine)?, Vec::<Value>::new(), "{deed}");
    }
    Ok(())
}

/// Of the same rules in another order, and of a table that sleeps, no line differs.
pub fn no_change_is_said_of_none_only() -> Outcome {
    for deed in ["order", "dormant"] {
        let machine = Machine::new()?;
        machine.killswitch(&["lock"])?.exits(0);
        match deed {
            "order" => {
                machine.nft(
                    "flush chain inet killswitch forward\nflush chain inet killswitch input",
                )?;
                machine.killswitch(&["lock"])?.exits(0);
                let rules = machine.host.command(
                    "timeout",
                    &["20", "nft", "-a", "list", "chain", "inet", "killswitch", "output"],
                )?;
                let last = rules.lines().find(|line| line.contains("\"blocked: output\""));
                let handle = last.and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
                machine.nft(&format!(
                    "delete rule inet killswitch output handle {handle}\n\
                     insert rule inet killswitch output counter drop comment \"blocked: output\""
                ))?;
            }
            _ => {
                // One that persists cannot be put to sleep by this nft: take one of its own.
                machine.killswitch(&["unlock", "--yes"])?.exits(0);
                machine.nft("add table inet killswitch")?;
                machine.killswitch(&["lock"])?.exits(0);
                machine.nft("add table inet killswitch { flags dormant; }")?;
                assert!(machine.status()?["locked"] == false);
            }
        }
        machine.killswitch(&["status"])?.exits(30);
        let text = machine.killswitch(&["plan"])?.exits(0).out;
        assert!(!text.contains("no change"), "{deed}: {text}");
        assert_ne!(changes(&machine)?, Vec::<Value>::new(), "{deed}");
        machine.killswitch(&["lock"])?.exits(0);
        machine.killswitch(&["status"])?.exits(10);
    }
    Ok(())
}
