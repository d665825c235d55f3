//! Other programs at our rules: threats 21 to 23, 27 and 28.
//!
//! There is no daemon here: what another program does stays done until `killswitch lock`, and each
//! test shows what the layers that are left still hold.

use std::process::Output;

use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::{Context, Error, Result};
use killswitch::netfilter;
use killswitch::netlink::{Family, Socket};
use killswitch::ruleset;

use crate::common::{BLOCKED, DAMAGED, LockedLab, OPEN, words};
use crate::senders::{PACKET_SOCKETS, SOCKETS, Sender, all_leaked, send};

/// What ordinary programs send: the routing guard alone has an answer to it.
const ORDINARY: [Sender; 19] = [
    ("udp4", None),
    ("udp6", None),
    ("dns4", None),
    ("udp4_fragments", None),
    ("udp6_fragments", None),
    ("udp4_segments", None),
    ("udp4_corked", None),
    ("udplite4", None),
    ("tcp4", Some("-> 1.1.1.1:7001")),
    ("tcp6", Some("-> [2606:4700:4700::1111]:7002")),
    ("mptcp4", Some("-> 1.1.1.1:7005")),
    ("tcp4_fast_open", Some("-> 1.1.1.1:7006")),
    ("ping4", None),
    ("ping6", None),
    ("icmp4_raw", None),
    ("icmp6_raw", None),
    ("header4", None),
    ("gre4", None),
    ("esp4", None),
];

/// Without wildcard chains to list, which nft 1.0.6 cannot (threat 42), it does not hang; should
/// it, it is stopped.
fn nft(it: &LockedLab, arguments: &[&str]) -> Result<Output> {
    let mut all = vec!["60", "nft"];
    all.extend(arguments);
    it.lab.client.output("timeout", &all)
}

fn nft_ok(it: &LockedLab, arguments: &[&str]) -> Result<()> {
    let output = nft(it, arguments)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::new(format!("nft {arguments:?}: {}", words(&output)))),
    }
}

/// `lock` mends what was done, and then everything is stopped again.
fn lock_mends(it: &LockedLab) -> Outcome {
    it.lock()?;
    it.expect_status(BLOCKED)?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    it.during(|lab| send(lab, &PACKET_SOCKETS))?.must_be_clean()?;
    Ok(())
}

/// Both tables go: packet sockets are free again, ordinary programs are not.
pub fn t21_flush_ruleset() -> Outcome {
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, &ORDINARY))?, &ORDINARY)?;
    it.lock()?;
    nft_ok(&it, &["flush", "ruleset"])?;
    it.expect_status(OPEN)?;
    let packet: [Sender; 1] = [("packet_udp", None)];
    all_leaked(&it.during(|lab| send(lab, &packet))?, &packet)?;
    it.during(|lab| send(lab, &ORDINARY))?.must_be_clean()?;
    lock_mends(&it)
}

/// The egress guard is a table of its own.
pub fn t21_delete_table() -> Outcome {
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, &SOCKETS))?, &SOCKETS)?;
    it.lock()?;
    nft_ok(&it, &["delete", "table", "inet", "killswitch"])?;
    it.expect_status(OPEN)?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    it.during(|lab| send(lab, &PACKET_SOCKETS))?.must_be_clean()?;
    lock_mends(&it)
}

/// Everything but what only the egress guard sees is stopped by the table still.
pub fn t21_delete_egress_guard() -> Outcome {
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, &SOCKETS))?, &SOCKETS)?;
    it.lock()?;
    nft_ok(&it, &["delete", "table", "netdev", "killswitch"])?;
    it.expect_status(DAMAGED)?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    lock_mends(&it)
}

/// The kernel refuses to put a persistent table to sleep by itself; where it does not, it is seen.
pub fn t21_dormant() -> Outcome {
    let it = LockedLab::new()?;
    let naive = "table inet naive { chain output {
        type filter hook output priority 0
        udp dport 443 drop
    }
    }";
    let sender: [Sender; 1] = [("udp4", None)];
    it.lab.client.feed("nft", &["-f", "-"], naive)?;
    it.during(|lab| send(lab, &sender))?.must_be_silent_of("udp4")?;
    nft_ok(&it, &["add", "table", "inet", "naive", "{ flags dormant; }"])?;
    it.during(|lab| send(lab, &sender))?.must_show("udp4")?;
    it.lock()?;
    let refused =
        !nft(&it, &["add", "table", "inet", "killswitch", "{ flags dormant; }"])?.status.success();
    it.expect_status(if refused { BLOCKED } else { DAMAGED })?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    lock_mends(&it)
}

/// Chains that others change one by one: the next layer holds, and the change is seen and mended.
pub fn t21_changes_within_the_table() -> Outcome {
    const CHANGES: [&[&str]; 6] = [
        &["chain", "inet", "killswitch", "output", "{ policy accept; }"],
        &["chain", "inet", "killswitch", "postrouting", "{ policy accept; }"],
        &["insert", "rule", "inet", "killswitch", "output", "accept"],
        &["insert", "rule", "inet", "killswitch", "postrouting", "accept"],
        &["insert", "rule", "inet", "killswitch", "leave", "accept"],
        &["insert", "rule", "netdev", "killswitch", "frames", "accept"],
    ];
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, &SOCKETS))?, &SOCKETS)?;
    it.lock()?;
    for change in CHANGES {
        nft_ok(&it, change)?;
        it.expect_status(DAMAGED).during(format!("{change:?}"))?;
        let seen = it.during(|lab| send(lab, &SOCKETS))?;
        seen.must_be_clean().during(format!("{change:?}"))?;
        it.lock().during(format!("{change:?}"))?;
        it.expect_status(BLOCKED).during(format!("{change:?}"))?;
    }
    lock_mends(&it)
}

/// The mended configuration must be able to replace the strictest lock in place: else the way out
/// would be to unlock.
pub fn t21_strictest_lock_gives_way_to_a_mended_configuration() -> Outcome {
    let it = LockedLab::new()?;
    it.write("killswitch.toml", "this is no configuration")?;
    assert_eq!(it.killswitch(&["lock", "--boot"])?.status.code(), Some(78));
    it.configure("")?;
    it.expect_status(DAMAGED)?;
    it.killswitch_ok(&["reload"])?;
    lock_mends(&it)
}

/// Every process that locks ends, and its socket with it.
pub fn t22_owner_gone() -> Outcome {
    let it = LockedLab::new()?;
    it.lab.client.feed("nft", &["-f", "-"], "table inet mortal { flags owner; }\n")?;
    eventually("a table without `persist` is gone with its owner", || {
        Ok(!it.lab.client.command("nft", &["list", "tables"])?.contains("mortal"))
    })?;
    it.lock()?;
    let status = it.expect_status(BLOCKED)?;
    assert_eq!(status.json["layers"]["owned"], false, "{status:?}");
    lock_mends(&it)
}

/// As the daemon does: both tables by a socket that stays open.
fn hold(it: &LockedLab) -> Result<Socket> {
    let policy = it.policy()?;
    it.lab.client.run(|| {
        let socket = Socket::open(Family::Netfilter).during("netlink")?;
        let route = Socket::open(Family::Route).during("netlink")?;
        netfilter::apply(&socket, &ruleset::compile(&policy)).during("table")?;
        netfilter::apply_guard(&socket, &route, &policy).during("egress guard")?;
        Ok(socket)
    })?
}

pub fn t23_owned_tables_cannot_be_changed() -> Outcome {
    const REFUSED: [&[&str]; 4] = [
        &["delete", "table", "inet", "killswitch"],
        &["chain", "inet", "killswitch", "output", "{ policy accept; }"],
        &["insert", "rule", "inet", "killswitch", "output", "accept"],
        &["add", "table", "inet", "killswitch", "{ flags dormant; }"],
    ];
    let it = LockedLab::new()?;
    all_leaked(&it.during(|lab| send(lab, &PACKET_SOCKETS))?, &PACKET_SOCKETS)?;
    let owner = hold(&it)?;
    it.lock()?;
    let status = it.expect_status(BLOCKED)?;
    assert_eq!(status.json["layers"]["owned"], true, "{status:?}");
    nft_ok(&it, &["flush", "ruleset"])?;
    for change in REFUSED {
        assert!(!nft(&it, change)?.status.success(), "{change:?}");
    }
    it.expect_status(BLOCKED)?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    it.during(|lab| send(lab, &PACKET_SOCKETS))?.must_be_clean()?;
    another_is_told_of_the_owner(&it, &owner)?;
    // An orphan: nobody keeps others from it, and the next `lock` may have it.
    drop(owner);
    it.lock()?;
    it.expect_status(BLOCKED)?;
    nft_ok(&it, &["flush", "ruleset"])?;
    it.expect_status(OPEN)?;
    lock_mends(&it)
}

/// A change, or the end of the lock, by anybody but the owner.
fn another_is_told_of_the_owner(it: &LockedLab, owner: &Socket) -> Outcome {
    it.configure("[allow]\nntp = [\"203.0.113.10\"]\n")?;
    for arguments in [&["lock"][..], &["reload"], &["unlock", "--yes"]] {
        let output = it.killswitch(arguments)?;
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        let told = format!("owned by the netlink port {}", owner.port());
        assert!(words(&output).contains(&told), "{}", words(&output));
    }
    it.configure("")?;
    it.expect_status(BLOCKED)?;
    Ok(())
}

/// A file with one mistake loads nothing; the lock needs neither files of rules nor nft.
pub fn t27_a_mistake_in_a_file_of_rules() -> Outcome {
    let it = LockedLab::new()?;
    let rules = "table inet naive {
        chain output { type filter hook output priority 0; policy drop; }
        chain fwd {
    }\n";
    assert!(it.lab.client.feed("nft", &["-f", "-"], rules).is_err());
    assert!(!it.lab.client.command("nft", &["list", "tables"])?.contains("naive"));
    all_leaked(&it.during(|lab| send(lab, &SOCKETS))?, &SOCKETS)?;
    let config = it.config();
    let config = config.to_str().ok_or("a path that is not text")?;
    let program = env!("CARGO_BIN_EXE_killswitch");
    it.lab
        .client
        .command("env", &["-i", "PATH=/nonexistent", program, "--config", config, "lock"])?;
    it.flush()?;
    it.expect_status(BLOCKED)?;
    it.during(|lab| send(lab, &SOCKETS))?.must_be_clean()?;
    Ok(())
}

/// In nftables a drop is final, whoever accepts before or after.
pub fn t28_foreign_accepts() -> Outcome {
    let mut foreign = String::new();
    for (name, priority) in [("early", -500), ("late", 500), ("last", i32::MAX)] {
        foreign += &format!("table inet {name} {{\n");
        for hook in ["output", "postrouting", "forward", "input", "prerouting"] {
            foreign += &format!(
                "chain {hook} {{
                    type filter hook {hook} priority {priority}; policy accept;
                    accept
                }}\n"
            );
        }
        foreign += "}\n";
    }
    for (name, priority) in [("early", -500), ("late", 500)] {
        foreign += &format!(
            "table netdev {name} {{
                chain egress {{
                    type filter hook egress device eth0 priority {priority}; policy accept;
                    accept
                }}
            }}\n"
        );
    }
    let it = LockedLab::new()?;
    it.lab.client.feed("nft", &["-f", "-"], &foreign)?;
    all_leaked(&it.during(|lab| send(lab, &SOCKETS))?, &SOCKETS)?;
    all_leaked(&it.during(|lab| send(lab, &PACKET_SOCKETS))?, &PACKET_SOCKETS)?;
    lock_mends(&it)
}
