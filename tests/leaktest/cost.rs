//! What the passive part costs, by what it asks of the kernel: processor time depends on the build and
//! on who else is at work, the number of system calls does not.

use std::fs;

use killswitch::lab::Context;
use killswitch::lab::harness::{Failed, Outcome, Test};
use serde_json::Value;

use crate::common::LockedLab;

pub const TESTS: &[Test] =
    &[("the_passive_part_costs_little_on_many_links", the_passive_part_costs_little_on_many_links)];

/// So many are tried.
const LINKS: usize = 16;

/// Opening a socket costs as much as sending three canaries, and asking for every link's address as
/// much as a hundred. Measured (static release build, 16 links): 1200 sockets and 46 such questions
/// took 36 ms of processor, 530 and 1 take 21 ms.
fn the_passive_part_costs_little_on_many_links() -> Outcome {
    let locked = LockedLab::new()?;
    let one = Calls::of_leaktest(&locked)?;
    let trap = locked.lab.trap.path();
    for number in 1..LINKS {
        locked.lab.client.ip(&format!(
            "link add more{number} type veth peer name far{number} netns {trap}
             address add 10.98.{number}.2/24 dev more{number}
             link set more{number} up"
        ))?;
    }
    let many = Calls::of_leaktest(&locked)?;
    assert!(many.canaries > 8 * one.canaries, "{one:?} {many:?}");
    // A TCP connection takes a socket of its own.
    let shared = many.sockets.saturating_sub(many.connections);
    assert!(4 * shared < many.canaries - many.connections, "{one:?} {many:?}");
    // A slow machine has a few more, since its state is looked at now and then.
    assert!(many.questions < one.questions + LINKS, "{one:?} {many:?}");
    Ok(())
}

/// What `leaktest` asked of the kernel.
#[derive(Debug)]
struct Calls {
    /// Canaries sent, as it says itself.
    canaries: usize,
    /// Connections begun.
    connections: usize,
    /// Sockets opened to send by.
    sockets: usize,
    /// Sockets opened to ask the kernel something.
    questions: usize,
}

impl Calls {
    fn of_leaktest(locked: &LockedLab) -> std::result::Result<Self, Failed> {
        locked.lock()?;
        let trace = locked.config().with_file_name("trace");
        let text = |path: &std::path::Path| path.display().to_string();
        let (trace_path, config) = (text(&trace), text(&locked.config()));
        let program = env!("CARGO_BIN_EXE_killswitch");
        let words = ["-f", "-qq", "-e", "trace=socket,connect", "-o", &trace_path, program];
        let rest = ["--config", &config, "--json", "leaktest"];
        let output = locked.lab.client.output("strace", &[&words[..], &rest].concat())?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .during(String::from_utf8_lossy(&output.stderr))?;
        assert_eq!(said["verdict"], "held", "{said:#}");
        let sent = said["probes"].as_array().into_iter().flatten();
        let canaries = sent.filter_map(|it| it["sent"].as_u64()).sum::<u64>();
        let lines = fs::read_to_string(&trace).during(&trace_path)?;
        let count = |what: &[&str]| {
            lines.lines().filter(|line| what.iter().any(|it| line.contains(it))).count()
        };
        Ok(Calls {
            canaries: usize::try_from(canaries)?,
            connections: count(&["connect("]) - count(&["sun_path"]),
            sockets: count(&["socket(AF_INET", "socket(AF_PACKET"]),
            questions: count(&["socket(AF_NETLINK"]),
        })
    }
}
