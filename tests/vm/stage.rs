//! A laboratory whose client is an emulated Debian machine, and what is known of it.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::advertisement::{Advertiser, RaOptions};
use killswitch::lab::dhcp::DhcpServer;
use killswitch::lab::harness::Failed;
use killswitch::lab::{Context, Error, Expectation, Lab, Report, Result};

use super::disks::{self, Files};
use super::machine::{Machine, PATIENCE, Start};
use super::networks::Network;
use super::plan::{Configurator, Plan, Suite};
use super::ways::{self, Way};

/// The network around a machine, and the machine.
pub struct Stage {
    pub machine: Machine,
    /// Whether the kill switch is on in it.
    pub guarded: bool,
    pub lab: Lab,
    files: Files,
    leases: Option<DhcpServer>,
    router: Option<Advertiser>,
}

impl Stage {
    /// Boots a machine: everything is there that the plan says, from power-on.
    ///
    /// # Errors
    /// Why not.
    pub fn boot(suite: Suite, plan: &Plan) -> Result<Self> {
        Self::boot_with(suite, plan, |_| Ok(()))
    }

    /// As [`Stage::boot`], in a laboratory that is prepared before power-on.
    ///
    /// # Errors
    /// Why not.
    pub fn boot_with(
        suite: Suite,
        plan: &Plan,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Self> {
        let disk = disks::installed(suite)?;
        Self::start(suite, &disk, plan, false, prepare)
    }

    /// A machine that has booted with networkd; guarded ones are connected. The same at every call.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(suite: Suite, guarded: bool) -> Result<Self> {
        let mut stage = Self::resume(suite, &disks::saved(suite, guarded)?)?;
        stage.guarded = guarded;
        if guarded {
            // The servers have forgotten the session.
            stage.wait_until_connected()?;
        }
        Ok(stage)
    }

    /// Goes on with a machine that [`Stage::save`] has kept.
    ///
    /// # Errors
    /// Why not.
    pub fn resume(suite: Suite, disk: &Path) -> Result<Self> {
        Self::start(suite, disk, &Plan::guarded(Configurator::Networkd), true, |_| Ok(()))
    }

    /// Keeps its state in `disk`, and ends it.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn save(mut self, disk: &Path) -> Result<()> {
        self.machine.save()?;
        self.keep_disk(disk)
    }

    /// Of a machine that is off.
    ///
    /// # Errors
    /// Those of files.
    pub fn keep_disk(&self, disk: &Path) -> Result<()> {
        std::fs::rename(self.files.disk(), disk).during(disk.display())
    }

    /// Starts a machine with a copy of `disk`.
    ///
    /// # Errors
    /// Why not.
    pub fn start(
        suite: Suite,
        disk: &Path,
        plan: &Plan,
        resume: bool,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let files = Files::new(&format!("{suite}-{number}"))?;
        std::fs::copy(disk, files.disk()).during(disk.display())?;
        let swap = plan.swap.then(|| files.swap()).transpose()?;
        let mut lab = Lab::new()?;
        let [client, first, second] = disks::keys();
        lab.client_keys = client.clone();
        lab.servers[0].keys = first.clone();
        lab.servers[1].keys = second.clone();
        lab.start_server(0)?;
        lab.start_server(1)?;
        prepare(&lab)?;
        plug_in(&lab)?;
        let payload = disks::payload(suite);
        let start = Start {
            image: disks::image(suite),
            stock_initrd: plan.stock_initrd,
            disk: files.disk(),
            swap,
            payload: payload.is_file().then_some(payload),
            append: plan.command_line(),
            resume,
        };
        let machine = Machine::start(&lab.client, files.directory(), &start)?;
        let mut stage =
            Stage { machine, guarded: plan.guarded, lab, files, leases: None, router: None };
        stage.plug_into(&Network::default())?;
        Ok(stage)
    }

    /// From now on the other end of the cable is in this network. The machine is not told.
    ///
    /// # Errors
    /// The words of `ip`; those of sockets.
    pub fn plug_into(&mut self, network: &Network) -> Result<()> {
        // The old servers' sockets first.
        (self.leases, self.router) = (None, None);
        self.lab.router.ip(&format!("link set {WIRE} master {}", network.leases.link))?;
        self.leases = Some(DhcpServer::start(&self.lab.router, network.leases.clone())?);
        let interval = Duration::from_secs(3);
        let options = RaOptions { interval, ..network.router.clone() };
        self.router = Some(Advertiser::start(&self.lab.router, options)?);
        Ok(())
    }

    /// Until the daemon answers and says that it is connected, and an answer comes from the Internet;
    /// while the senders still try.
    ///
    /// # Errors
    /// What is in the way.
    pub fn wait_until_connected(&mut self) -> Result<Duration> {
        self.machine
            .wait_for(&format!(
                "systemctl is-active --quiet senders && killswitch exception list && \
                 killswitch status 2>&1 && ping -c1 -W2 -q {INTERNET_V4} && \
                 ping -c1 -W2 -q {INTERNET_V6}"
            ))
            .map_err(|error| {
                let look = "killswitch status; ip address; ip route; ip rule; wg; \
                            journalctl --no-pager -n 60 -u killswitch -u killswitch-lock";
                self.explained(&error, look)
            })
    }

    /// An error, and what the machine says of itself.
    pub fn explained(&mut self, error: &Error, look: &str) -> Error {
        let more = self.machine.ask(look).map_or_else(|it| it.to_string(), |it| it.text);
        Error::new(format!("{error}\n{more}"))
    }

    /// What it has sent since the last look.
    ///
    /// # Errors
    /// Those of the capture.
    pub fn sent(&mut self) -> Result<Report> {
        self.machine.sent(&Expectation::of(&self.lab))
    }

    /// Shuts it down, in order.
    ///
    /// # Errors
    /// If it stays on.
    pub fn power_off(&mut self) -> Result<()> {
        self.machine.begin("systemctl poweroff")?;
        self.machine.wait_for_power_off()
    }

    /// Fails if a frame has left that must not, since the last look.
    pub fn nothing_leaked(&mut self, during: &str) -> std::result::Result<(), Failed> {
        self.nothing_leaked_but(during, &[]).map(drop)
    }

    /// The same, but for frames of these kinds: how many there were.
    pub fn nothing_leaked_but(
        &mut self,
        during: &str,
        excused: &[&str],
    ) -> std::result::Result<u64, Failed> {
        let mut report = self.sent()?;
        let before = report.leaked_total();
        report.leaked.retain(|kind, _| !ways::is_excused(kind, excused));
        if report.leaked_total() == 0 {
            return Ok(before);
        }
        Err(format!(
            "{} frames leaked during {during}: {}\n{}",
            report.leaked_total(),
            report.summary(8),
            self.machine.last_words()
        )
        .into())
    }

    /// Fails unless something has left by each of these ways, since the last look or soon: how many
    /// frames that must not.
    pub fn leaked(&mut self, during: &str, ways: &[&[Way]]) -> std::result::Result<u64, Failed> {
        let seen = ways::watch(ways, PATIENCE, || self.sent())?;
        match ways::missing(ways, &seen) {
            none if none.is_empty() && seen.leaked_total() > 0 => Ok(seen.leaked_total()),
            missing => Err(format!(
                "the control did not leak during {during}: {}; only {}\n{}",
                missing.join(", "),
                seen.summary(20),
                self.machine.last_words()
            )
            .into()),
        }
    }
}

/// The client's wire goes on to the machine's cable; the client itself says nothing.
fn plug_in(lab: &Lab) -> Result<()> {
    for setting in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
        lab.client.sysctl(setting, "1")?;
    }
    lab.client.ip(&format!(
        "address flush dev {CLIENT_LINK}
         link add cable type bridge forward_delay 0 mcast_snooping 0
         tuntap add tap0 mode tap
         link set {CLIENT_LINK} master cable up
         link set tap0 master cable up
         link set cable up"
    ))
}
