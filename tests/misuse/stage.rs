//! The daemon, locked and without a tunnel, on a bus; and what it takes of the machine.

use std::fs;
use std::time::{Duration, Instant};

use killswitch::dbus::client;
use killswitch::lab::harness::eventually;
use killswitch::lab::host::Process;
use killswitch::lab::{Context, Daemon, Error, Lab, Result, setup};

use crate::{bus, wire};

/// Dropped in this order.
pub struct Stage {
    daemon: Daemon,
    id: u32,
    _bus: Process,
    lab: Lab,
}

/// Of the daemon's process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Resident, in kB.
    pub memory: u64,
    pub threads: u64,
    pub descriptors: usize,
}

impl Stage {
    pub fn set() -> Result<Self> {
        let lab = Lab::new()?;
        let bus = bus::start(&lab.client)?;
        let configuration = setup::write_configuration(&lab, "")?;
        let mut daemon = Daemon::start(&lab, &setup::program()?, &configuration)?;
        let id = daemon.id().ok_or_else(|| Error::new("no daemon"))?;
        let stage = Stage { daemon, id, _bus: bus, lab };
        eventually("the daemon is on the bus", || Ok(stage.on_bus().unwrap_or(false)))?;
        eventually("locked, without a tunnel", || {
            let Ok(daemon) = client::Daemon::reach(LONGEST) else { return Ok(false) };
            let _ = daemon.disconnect();
            let report = daemon.report().during("report")?;
            Ok(report.locked && report.intact && report.tunnel == "off")
        })?;
        Ok(stage)
    }

    fn on_bus(&self) -> std::io::Result<bool> {
        let mut wire = wire::Wire::bus(bus::SOCKET)?;
        wire.send(&wire::property())?;
        Ok(wire.reply()?.is_return())
    }

    /// What the kernel holds, without counts.
    pub fn rules(&self) -> Result<String> {
        let rules = "nft -s list table inet killswitch; ip rule; ip -6 rule; ls /sys/class/net";
        self.lab.client.command("sh", &["-ec", rules])
    }

    pub fn usage(&self) -> Result<Usage> {
        let path = format!("/proc/{}", self.id);
        let status = fs::read_to_string(format!("{path}/status")).during("the daemon is gone")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let descriptors = fs::read_dir(format!("{path}/fd")).during("the daemon is gone")?.count();
        Ok(Usage { memory: field("VmRSS:"), threads: field("Threads:"), descriptors })
    }

    /// The same process, on the bus and at its socket, with as many descriptors as before, and not
    /// much more memory: what its allocator keeps, not what grows with the number of calls.
    pub fn recovers(&mut self, before: Usage, growth: u64) -> Result<()> {
        assert!(self.daemon.runs(), "the daemon ended: {}", self.daemon.log()?);
        assert!(self.on_bus().during("the bus")?, "not on the bus");
        let log = self.daemon.log()?;
        assert!(!log.contains("panicked"), "{log}");
        let mut usage = before;
        eventually("descriptors and threads go back", || {
            usage = self.usage()?;
            Ok(usage.descriptors <= before.descriptors
                && usage.threads <= before.threads + MOST_THREADS)
        })
        .during(format!("{before:?}, now {usage:?}"))?;
        println!("before: {before:?}\nafter:  {usage:?}");
        assert!(usage.memory < before.memory + growth, "it grew: {before:?}, now {usage:?}");
        round_trip().map(drop)
    }
}

/// That do blocking work for callers, and end after ten idle seconds.
const MOST_THREADS: u64 = 8;
/// For an answer at the control socket.
const LONGEST: Duration = Duration::from_secs(5);

/// Root asks the loop for something, that needs no work of it: how long the answer takes.
pub fn round_trip() -> Result<Duration> {
    let begin = Instant::now();
    let daemon = client::Daemon::reach(LONGEST).during("the control socket")?;
    daemon.disconnect().during("the control socket")?;
    Ok(begin.elapsed())
}

/// So many round trips, sorted.
pub fn round_trips(count: usize) -> Result<Vec<Duration>> {
    let mut all = (0..count).map(|_| round_trip()).collect::<Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}
