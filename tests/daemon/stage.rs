//! A laboratory with the daemon in it, senders that never stop, and a capture that sees all.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{Failed, eventually};
use killswitch::lab::{
    Capture, Daemon, Error, Expectation, Fault, Lab, Report, Result, Senders, setup,
};

/// Packets a second, of all kinds together.
const RATE: u32 = 300;
/// How long faults last.
const SPELL: Duration = Duration::from_millis(300);
/// For traffic to come back: machines are noisy, and some faults take a server's time-out.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a packet's way depends on, each with its name before it, and errors with it.
const LOOK: &str = "exec 2>&1
for it in 'ip -s -d address' 'ip rule' 'ip -6 rule' \
    'ip route show table all' 'ip -6 route show table all' \
    'ip route get 203.0.113.7' 'ip -6 route get 2001:db8::1' 'ip neighbour' \
    'ls -l /run/wireguard'; do
    echo \"== $it\"
    $it
done";

/// Dropped in this order: those who use the laboratory first.
pub struct Stage {
    pub daemon: Daemon,
    senders: Option<Senders>,
    pub capture: Capture,
    pub program: PathBuf,
    pub configuration: PathBuf,
    pub lab: Lab,
}

impl Stage {
    /// Locked, connected, and everybody sends.
    pub fn set() -> Result<Self> {
        Self::set_with("")
    }

    /// As [`Stage::set`], with more configuration.
    pub fn set_with(more: &str) -> Result<Self> {
        let lab = Lab::with_servers()?;
        let program = setup::program()?;
        let configuration = setup::write_configuration(&lab, more)?;
        let senders = Senders::start(&lab, RATE)?;
        let daemon = Daemon::start(&lab, &program, &configuration)?;
        let capture = Capture::start(&lab, Expectation::of(&lab))?;
        let senders = Some(senders);
        let stage = Stage { daemon, senders, capture, program, configuration, lab };
        // Traffic in clear, before the lock is on, is none.
        eventually("the daemon connects", || Ok(stage.ask(&["status"])?.status.code() == Some(0)))?;
        stage.wait_for_traffic("connecting at start")?;
        stage.capture.take();
        Ok(stage)
    }

    /// Runs `killswitch` with these arguments: its output, whatever its exit status.
    pub fn ask(&self, arguments: &[&str]) -> Result<std::process::Output> {
        setup::killswitch(&self.lab, &self.program, &self.configuration, arguments)
    }

    /// Nobody sends any more; returns when the daemon has noticed, and sleeps until somebody does.
    pub fn fall_silent(&mut self) -> Result<()> {
        self.senders = None;
        eventually("the daemon waits for traffic", || {
            let sockets = self.lab.client.command("cat", &["/proc/net/packet"])?;
            Ok(sockets.lines().count() > 1)
        })
    }

    /// Until answers come from the Internet, over IPv4 and IPv6.
    pub fn wait_for_traffic(&self, after: &str) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            if self.answers(INTERNET_V4.into())? && self.answers(INTERNET_V6.into())? {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                let status = self.ask(&["status"])?;
                let network = self.lab.client.output("sh", &["-c", LOOK])?;
                return Err(Error::new(format!(
                    "no traffic within {} s after {after}\n{}{}\nthe daemon said, besides what was \
                     blocked:\n{}",
                    PATIENCE.as_secs(),
                    String::from_utf8_lossy(&status.stdout),
                    String::from_utf8_lossy(&network.stdout),
                    self.daemon.log_without("INFO blocked")?
                )));
            }
        }
    }

    /// What `killswitch status --json` says.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.ask(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::new(format!("status --json: {error}")))
    }

    /// Whether an answer comes from the Internet over IPv4.
    pub fn has_traffic(&self) -> Result<bool> {
        self.answers(INTERNET_V4.into())
    }

    fn answers(&self, address: std::net::IpAddr) -> Result<bool> {
        let to = address.to_string();
        let output = self.lab.client.output("ping", &["-c1", "-W1", "-q", &to])?;
        Ok(output.status.success())
    }

    /// Fails if a frame leaked since the last call.
    pub fn nothing_leaked(&self, during: &str) -> std::result::Result<Report, Failed> {
        let report = self.capture.take();
        if report.leaked_total() > 0 {
            let log = self.daemon.log()?;
            return Err(format!("leaked during {during}: {}\n{log}", report.summary(5)).into());
        }
        Ok(report)
    }

    /// Applies faults, waits, undoes them, and waits for the traffic to return by itself.
    pub fn suffer(&mut self, faults: &[Fault]) -> std::result::Result<Duration, Failed> {
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        let names = names.join(" and ");
        for fault in faults {
            fault.apply(&mut self.lab)?;
        }
        std::thread::sleep(SPELL);
        for fault in faults.iter().rev() {
            fault.undo(&mut self.lab)?;
        }
        let took = self.wait_for_traffic(&names)?;
        self.nothing_leaked(&names)?;
        Ok(took)
    }

    /// One fault after the other, each undone a while later or when it would come again, so that
    /// several hold at once; then all are undone, and the traffic returns by itself.
    pub fn suffer_in_turn(
        &mut self,
        faults: &[Fault],
        what: &str,
    ) -> std::result::Result<(), Failed> {
        /// Faults at the same time.
        const MOST: usize = 3;
        /// Between two faults.
        const PAUSE: Duration = Duration::from_millis(20);
        let mut present: Vec<Fault> = Vec::new();
        for &fault in faults {
            if let Some(position) = present.iter().position(|&it| it == fault) {
                present.remove(position).undo(&mut self.lab)?;
            }
            fault.apply(&mut self.lab)?;
            present.push(fault);
            if present.len() > MOST {
                present.remove(0).undo(&mut self.lab)?;
            }
            std::thread::sleep(PAUSE);
        }
        while let Some(fault) = present.pop() {
            fault.undo(&mut self.lab)?;
        }
        self.wait_for_traffic(what)?;
        self.nothing_leaked(what)?;
        Ok(())
    }
}
