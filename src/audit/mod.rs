//! `audit`: what on this machine could weaken the lock, and what to do about it.
//!
//! [`facts`] reads the kernel and files, each fact with why it could not be read; the checks are pure:
//! facts and what is wanted in, findings out. A finding is what an administrator should change. What
//! the lock makes harmless, or what no configuration can change (an old kernel), is a note: a clean
//! machine has no finding.

mod checks;
pub mod facts;
mod kinds;

use std::net::IpAddr;

use serde::Serialize;

pub use facts::{Facts, Unknown};
pub use kinds::KINDS;

use crate::config::{self, Config};
use crate::policy::Policy;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets can leave now, or will at the next boot.
    Critical,
    /// A layer is weaker, or a way out opens if something else happens.
    Warning,
}

impl Severity {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        }
    }
}

/// A kind of finding, as the manual lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable: scripts know it.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Why it matters.
    pub why: &'static str,
    /// Numbers of SECURITY.md's table.
    pub threats: &'static [u32],
}

impl Kind {
    /// One of this kind: what it is about, and the command or line that mends it.
    fn of(&self, what: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding {
            id: self.id,
            severity: self.severity,
            what: what.into(),
            why: self.why,
            cure: cure.into(),
            threats: self.threats,
        }
    }
}

/// Something to be changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// First, so that findings are in order of severity.
    pub severity: Severity,
    /// See [`KINDS`].
    pub id: &'static str,
    /// The link, table, process or file.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// The command or the line of a file that mends it.
    pub cure: String,
    /// Numbers of SECURITY.md's table.
    pub threats: &'static [u32],
}

/// Something worth knowing that needs no change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Note {
    /// Which check has it.
    pub check: &'static str,
    /// What it is about.
    pub what: String,
}

/// A check without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Which.
    pub check: &'static str,
    /// Why.
    pub why: String,
}

/// What one check found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    findings: Vec<Finding>,
    notes: Vec<String>,
}

impl Found {
    fn find(&mut self, kind: &Kind, what: impl Into<String>, cure: impl Into<String>) {
        self.findings.push(kind.of(what, cure));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }
}

/// What all checks found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// How many checks had a result.
    pub checks: usize,
    /// What to change; the worst first.
    pub findings: Vec<Finding>,
    /// What need not be changed.
    pub notes: Vec<Note>,
    /// What could not be told.
    pub unchecked: Vec<Skipped>,
    /// What this machine does not have.
    pub not_applicable: Vec<Skipped>,
}

impl Report {
    /// 0 nothing found; 10 warnings; 20 something critical; 30 nothing, but a check could not be
    /// made.
    pub fn exit_code(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).min() {
            Some(Severity::Critical) => 20,
            Some(Severity::Warning) => 10,
            None if !self.unchecked.is_empty() => 30,
            None => 0,
        }
    }
}

/// What the configuration wants, as far as it can be used.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The strictest, if it cannot.
    pub policy: Policy,
    /// The tunnel's resolvers.
    pub dns: Vec<IpAddr>,
    /// It locks at boot.
    pub at_boot: bool,
    /// Why it cannot be used: where, what, and what to do.
    pub complaints: Vec<(String, String)>,
}

impl Wanted {
    /// By a configuration that was read, or was to be.
    pub fn of(config: &Result<Config, config::Error>) -> Self {
        match config {
            Ok(config) => Wanted {
                policy: Policy::from_config(config),
                dns: config.tunnel.dns.clone(),
                at_boot: config.lock.at_boot,
                complaints: Vec::new(),
            },
            Err(error) => Wanted {
                policy: Policy::strictest(),
                dns: Vec::new(),
                at_boot: true,
                complaints: error.problems().iter().map(complaint).collect(),
            },
        }
    }
}

fn complaint(problem: &config::Problem) -> (String, String) {
    let help = problem.help.clone().unwrap_or_else(|| "killswitch check".into());
    (format!("{}: {}", problem.location, problem.message), help)
}

/// What the checks say of the facts.
pub fn judge(facts: &Facts, wanted: &Wanted) -> Report {
    let mut report = Report::default();
    for (check, run) in checks::CHECKS {
        match run(facts, wanted) {
            Ok(found) => {
                report.checks += 1;
                report.findings.extend(found.findings);
                report.notes.extend(found.notes.into_iter().map(|what| Note { check, what }));
            }
            Err(Unknown::NotApplicable(why)) => report.not_applicable.push(Skipped { check, why }),
            Err(Unknown::Unreadable(why)) => report.unchecked.push(Skipped { check, why }),
        }
    }
    report.findings.sort();
    report.findings.dedup();
    report
}

/// The names of all checks, in order.
pub fn checks() -> impl Iterator<Item = &'static str> {
    checks::CHECKS.iter().map(|(name, _)| *name)
}
