//! The whole promise, shown: first the leak without the lock, then none with it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::addresses::*;
use super::capture::{Capture, Report};
use super::daemon::Daemon;
use super::decoder::Expectation;
use super::error::{Error, Result};
use super::faults::Fault;
use super::services::Heard;
use super::setup;
use super::topology::Lab;
use super::traffic::{Senders, Tally};

mod verdict;

pub use verdict::{Outcome, Verdicts};

/// Packets a second that the client's programs send throughout.
const RATE: u32 = 1000;
/// How long nothing may leave while there is no tunnel.
const PERIOD: Duration = Duration::from_secs(3);
/// How long a fault lasts that comes and goes.
const SPELL: Duration = Duration::from_secs(1);
/// How long the Internet host may take to read what came before a watched period.
const SETTLE: Duration = Duration::from_millis(300);
/// How long answers may take to come (again): machines are noisy.
const PATIENCE: Duration = Duration::from_secs(15);

/// What can be chosen.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The killswitch program; the one beside this program if absent.
    pub program: Option<PathBuf>,
}

/// One thing to show: what it shows, and how. `Ok`: what was seen, and whether it held.
/// `Err`: it could not be shown, nor anything after it.
struct Step {
    name: &'static str,
    claim: &'static str,
    run: fn(&mut Demo) -> Result<Finding>,
}

struct Finding {
    held: bool,
    detail: String,
}

/// In order. A new fault is a line here and a function below.
const STEPS: &[Step] = &[
    Step {
        name: "unlocked",
        claim: "without the lock, traffic leaks and is seen to",
        run: Demo::unlocked,
    },
    Step { name: "lock", claim: "the lock is applied and nothing leaves", run: Demo::lock },
    Step {
        name: "connect",
        claim: "the daemon connects: the tunnel and nothing else",
        run: Demo::connect,
    },
    Step {
        name: "tunnel-killed",
        claim: "the tunnel is killed: the daemon makes it anew",
        run: |demo| demo.suffers(&[Fault::TunnelDeleted]),
    },
    Step {
        name: "servers-dead",
        claim: "both servers are dead: nothing leaves, for as long as it takes",
        run: Demo::servers_die,
    },
    Step {
        name: "servers-back",
        claim: "the servers are back: so is the tunnel",
        run: Demo::servers_return,
    },
    Step {
        name: "failover",
        claim: "the server in use falls silent: the daemon takes the other one",
        run: Demo::failover,
    },
    Step {
        name: "link-flap",
        claim: "the link goes down and up",
        run: |demo| demo.suffers(&[Fault::LinkDown]),
    },
    Step {
        name: "new-network",
        claim: "another network: other address, other router",
        run: |demo| demo.suffers_for_good(Fault::NewNetwork),
    },
    Step {
        name: "routes",
        claim: "the network pushes routes around the tunnel",
        run: Demo::hostile_routes,
    },
    Step {
        name: "flush",
        claim: "another program flushes the firewall",
        run: |demo| demo.suffers(&[Fault::RulesetFlushed]),
    },
    Step {
        name: "rules-deleted",
        claim: "another program deletes the policy rules and routes",
        run: |demo| demo.suffers(&[Fault::RulesDeleted, Fault::RoutesDeleted]),
    },
    Step {
        name: "look-alike",
        claim: "another link takes the tunnel's name",
        run: |demo| demo.suffers(&[Fault::LookAlikeVeth]),
    },
    Step {
        name: "daemon-killed",
        claim: "the daemon is killed: the lock holds and the tunnel goes on",
        run: Demo::daemon_dies,
    },
    Step {
        name: "daemon-back",
        claim: "the daemon is started again: it adopts what it finds",
        run: Demo::daemon_returns,
    },
];

struct Demo {
    options: Options,
    // Dropped in this order: those who use the laboratory first.
    daemon: Option<Daemon>,
    senders: Senders,
    lab: Lab,
}

/// Runs every step and tells of each as it goes.
pub fn run(options: Options, progress: &mut dyn FnMut(&str)) -> Verdicts {
    let mut verdicts = Verdicts::default();
    progress("building a home network, an Internet and two VPN servers, all private");
    let start = Instant::now();
    let mut demo = match Demo::new(options) {
        Ok(demo) => {
            verdicts.add("laboratory", "it stands", start, true, "7 machines".into());
            demo
        }
        Err(error) => {
            verdicts.add("laboratory", "it stands", start, false, error.to_string());
            for step in STEPS {
                verdicts.skip(step.name, step.claim);
            }
            return verdicts;
        }
    };
    let mut steps = STEPS.iter();
    for step in steps.by_ref() {
        progress(step.claim);
        let start = Instant::now();
        match (step.run)(&mut demo) {
            Ok(finding) => {
                verdicts.add(step.name, step.claim, start, finding.held, finding.detail);
            }
            Err(error) => {
                verdicts.add(step.name, step.claim, start, false, error.to_string());
                break;
            }
        }
    }
    for step in steps {
        verdicts.skip(step.name, step.claim);
    }
    verdicts
}

impl Demo {
    fn new(options: Options) -> Result<Self> {
        super::namespaces::tun_device()?;
        let lab = Lab::with_servers()?;
        let senders = Senders::start(&lab, RATE)?;
        Ok(Demo { options, daemon: None, senders, lab })
    }

    /// The positive control: a capture that sees nothing here proves nothing later.
    fn unlocked(&mut self) -> Result<Finding> {
        let watch = Watch::start(self)?;
        sleep(Duration::from_secs(2));
        let seen = watch.stop(self)?;
        Ok(Finding {
            held: seen.report.leaked_total() > 100 && seen.tally.replies > 100,
            detail: seen.words(),
        })
    }

    fn lock(&mut self) -> Result<Finding> {
        let program = self.program()?;
        let configuration = setup::write_configuration(&self.lab, "")?;
        let output = setup::killswitch(&self.lab, &program, &configuration, &["lock"])?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("killswitch lock: {}: {words}", output.status)));
        }
        self.silent(|_| {
            sleep(PERIOD);
            Ok(())
        })
    }

    fn program(&self) -> Result<PathBuf> {
        self.options.program.clone().map_or_else(setup::program, Ok)
    }

    fn connect(&mut self) -> Result<Finding> {
        self.connected(|demo| {
            let program = demo.program()?;
            let configuration = setup::write_configuration(&demo.lab, "")?;
            demo.daemon = Some(Daemon::start(&demo.lab, &program, &configuration)?);
            Ok(())
        })
    }

    fn servers_die(&mut self) -> Result<Finding> {
        self.silent(|demo| {
            Fault::ServerSilent(0).apply(&mut demo.lab)?;
            Fault::ServerRefuses(1).apply(&mut demo.lab)?;
            sleep(PERIOD);
            Ok(())
        })
    }

    fn servers_return(&mut self) -> Result<Finding> {
        self.connected(|demo| {
            Fault::ServerSilent(0).undo(&mut demo.lab)?;
            Fault::ServerRefuses(1).undo(&mut demo.lab)
        })
    }

    fn failover(&mut self) -> Result<Finding> {
        let program = self.program()?;
        let configuration = setup::write_configuration(&self.lab, "")?;
        let words = ["status", "--json"];
        let status = setup::killswitch(&self.lab, &program, &configuration, &words)?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout)
            .map_err(|error| Error::new(format!("killswitch status --json: {error}")))?;
        let used = status["tunnel"]["server"].as_str().unwrap_or_default();
        let position = self.lab.servers.iter().position(|server| server.host.name() == used);
        let position = position.ok_or_else(|| Error::new(format!("no server in use: {status}")))?;
        self.suffers_for_good(Fault::ServerSilent(position))
    }

    fn daemon_dies(&mut self) -> Result<Finding> {
        self.connected(|demo| {
            demo.daemon.as_mut().map(Daemon::crash);
            sleep(PERIOD);
            Ok(())
        })
    }

    fn daemon_returns(&mut self) -> Result<Finding> {
        self.connected(|demo| match &mut demo.daemon {
            Some(daemon) => daemon.again(&demo.lab),
            None => Ok(()),
        })
    }

    /// Faults that come and go.
    fn suffers(&mut self, faults: &[Fault]) -> Result<Finding> {
        self.connected(|demo| {
            faults.iter().try_for_each(|fault| fault.apply(&mut demo.lab))?;
            sleep(SPELL);
            faults.iter().rev().try_for_each(|fault| fault.undo(&mut demo.lab))
        })
    }

    /// A fault that stays.
    fn suffers_for_good(&mut self, fault: Fault) -> Result<Finding> {
        self.connected(|demo| fault.apply(&mut demo.lab))
    }

    /// What TunnelVision (CVE-2024-3661) makes a DHCP client do, and its IPv6 sister.
    fn hostile_routes(&mut self) -> Result<Finding> {
        self.connected(|demo| {
            demo.lab.client.ip(&format!(
                "route add 0.0.0.0/1 via {OTHER_ROUTER_V4} dev {CLIENT_LINK}
                 route add 128.0.0.0/1 via {OTHER_ROUTER_V4} dev {CLIENT_LINK}
                 route add 1.1.1.1/32 via {OTHER_ROUTER_V4} dev {CLIENT_LINK}
                 route add 2000::/4 via {OTHER_ROUTER_LINK_LOCAL} dev {CLIENT_LINK}"
            ))?;
            sleep(SPELL);
            Ok(())
        })
    }

    /// Does something; nothing may leak meanwhile.
    fn silent(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<Finding> {
        let watch = Watch::start(self)?;
        act(self)?;
        let seen = watch.stop(self)?;
        Ok(Finding { held: seen.tight(), detail: seen.words() })
    }

    /// Does something; afterwards answers come through the tunnel, and nothing leaks meanwhile.
    fn connected(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<Finding> {
        let watch = Watch::start(self)?;
        act(self)?;
        let resumed = self.wait_for_replies()?;
        sleep(Duration::from_secs(1));
        let seen = watch.stop(self)?;
        let detail = format!(
            "{}; {} reached the Internet through a server, the first answers after {} ms",
            seen.words(),
            seen.through_servers,
            resumed.as_millis()
        );
        Ok(Finding { held: seen.tight() && seen.through_servers > 0, detail })
    }

    fn wait_for_replies(&self) -> Result<Duration> {
        let start = Instant::now();
        let before = self.senders.total().replies;
        while start.elapsed() < PATIENCE {
            // More than what may still have been on its way.
            if self.senders.total().replies > before + 50 {
                return Ok(start.elapsed());
            }
            sleep(Duration::from_millis(10));
        }
        let log = self.daemon.as_ref().map(Daemon::log).transpose()?.unwrap_or_default();
        Err(Error::new(format!(
            "no answers within {} s; the daemon said:\n{log}",
            PATIENCE.as_secs()
        )))
    }
}

/// A watched period.
struct Watch {
    capture: Capture,
    tally: Tally,
    heard: Heard,
}

struct Seen {
    report: Report,
    tally: Tally,
    /// What the Internet host got from the client's own addresses: a second witness.
    in_clear: u64,
    /// What it got from VPN servers.
    through_servers: u64,
}

impl Watch {
    fn start(demo: &Demo) -> Result<Self> {
        let capture = Capture::start(&demo.lab, Expectation::of(&demo.lab))?;
        sleep(SETTLE);
        Ok(Watch { capture, tally: demo.senders.total(), heard: demo.lab.echo.heard() })
    }

    fn stop(self, demo: &Demo) -> Result<Seen> {
        let tally = demo.senders.total().since(self.tally);
        let report = self.capture.stop()?;
        let heard = demo.lab.echo.heard();
        let since = |addresses: &[IpAddr]| -> u64 {
            let count = |heard: &Heard| -> u64 {
                addresses.iter().filter_map(|address| heard.get(address)).sum()
            };
            count(&heard).saturating_sub(count(&self.heard))
        };
        let servers = [SERVER1_V4.into(), SERVER1_V6.into(), SERVER2_V4.into(), SERVER2_V6.into()];
        Ok(Seen {
            report,
            tally,
            in_clear: since(&[
                CLIENT_V4.into(),
                CLIENT_V6.into(),
                OTHER_CLIENT_V4.into(),
                OTHER_CLIENT_V6.into(),
            ]),
            through_servers: since(&servers),
        })
    }
}

impl Seen {
    fn tight(&self) -> bool {
        self.report.leaked_total() == 0
            && self.report.lost == 0
            && self.in_clear == 0
            && self.tally.attempts > 0
    }

    fn words(&self) -> String {
        let mut words = format!(
            "{} sent, {} answered, {} leaked",
            self.tally.attempts,
            self.tally.replies,
            self.report.leaked_total(),
        );
        if self.in_clear > 0 {
            words.push_str(&format!(", {} heard in clear on the Internet", self.in_clear));
        }
        if self.report.lost > 0 {
            words.push_str(&format!(", {} not captured", self.report.lost));
        }
        if self.report.leaked_total() > 0 {
            words.push_str(&format!(" ({})", self.report.summary(3)));
        }
        words
    }
}
