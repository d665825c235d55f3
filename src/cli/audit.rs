//! `audit`: what could weaken the lock.

use std::time::Duration;

use nix::unistd::geteuid;

use super::args::Arguments;
use super::output::{Style, json, one_line, say, styled};
use super::{Failure, NOT_PERMITTED, status};
use crate::audit::{Facts, Finding, Report, Severity, Wanted, judge};
use crate::config;

/// That the daemon hangs is a finding: a busy machine must not look like it.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn audit(arguments: &Arguments) -> Result<u8, Failure> {
    if !geteuid().is_root() {
        return Err(Failure::new(
            NOT_PERMITTED,
            "only root sees all that can weaken the lock\nhelp: run this as root, e.g. with sudo",
        ));
    }
    let path = std::path::absolute(&arguments.config)?;
    let status = status::read_within(arguments, PATIENCE)?.0;
    let wanted = Wanted::of(&config::load(&path));
    let report = judge(&Facts::read(status, &path), &wanted);
    match arguments.json {
        true => json(&report),
        false => lines(&report).iter().for_each(|line| say(line)),
    }
    Ok(report.exit_code())
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines: Vec<String> = report.findings.iter().flat_map(describe).collect();
    let count = report.findings.len();
    if count > 0 {
        lines.push(String::new());
    }
    for note in &report.notes {
        lines.push(format!("note      {}: {}", note.check, one_line(&note.what)));
    }
    for skipped in &report.unchecked {
        let why = one_line(&skipped.why);
        let label = styled(Style::Yellow, "unchecked");
        lines.push(format!("{label} {}: {why}", skipped.check));
    }
    for skipped in &report.not_applicable {
        lines.push(format!("skipped   {}: {}", skipped.check, one_line(&skipped.why)));
    }
    lines.push(summary(report));
    lines
}

fn describe(finding: &Finding) -> Vec<String> {
    let style = match finding.severity {
        Severity::Critical => Style::Red,
        Severity::Warning => Style::Yellow,
    };
    let label = styled(style, &format!("{:<9}", finding.severity.name()));
    vec![
        format!("{label} {}: {}", finding.id, one_line(&finding.what)),
        format!("          {}", finding.why),
        format!("    cure: {}", one_line(&finding.cure)),
    ]
}

fn summary(report: &Report) -> String {
    let checks = report.checks;
    let unchecked = match report.unchecked.len() {
        0 => String::new(),
        count => format!(", {count} could not be made"),
    };
    match report.findings.len() {
        0 if report.unchecked.is_empty() => {
            styled(Style::Green, &format!("nothing found; {checks} checks"))
        }
        0 => format!("nothing found; {checks} checks{unchecked}"),
        found => format!("{found} found; {checks} checks{unchecked}"),
    }
}
