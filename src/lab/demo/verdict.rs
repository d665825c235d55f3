use std::fmt::Write;
use std::time::Instant;

use serde_json::{Value, json};

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It showed what it claims.
    Held,
    /// It did not.
    Failed,
    /// Something before it failed.
    NotRun,
}

struct Line {
    name: &'static str,
    claim: &'static str,
    outcome: Outcome,
    detail: String,
    seconds: f64,
}

/// The outcome of a demonstration.
#[derive(Default)]
pub struct Verdicts(Vec<Line>);

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Held => "held",
            Outcome::Failed => "failed",
            Outcome::NotRun => "not-run",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Outcome::Held => "\x1b[32m",
            Outcome::Failed => "\x1b[31m",
            Outcome::NotRun => "\x1b[33m",
        }
    }
}

impl Verdicts {
    pub(super) fn add(
        &mut self,
        name: &'static str,
        claim: &'static str,
        start: Instant,
        held: bool,
        detail: String,
    ) {
        let outcome = if held { Outcome::Held } else { Outcome::Failed };
        let seconds = start.elapsed().as_secs_f64();
        self.0.push(Line { name, claim, outcome, detail, seconds });
    }

    pub(super) fn skip(&mut self, name: &'static str, claim: &'static str) {
        let (outcome, detail) = (Outcome::NotRun, String::new());
        self.0.push(Line { name, claim, outcome, detail, seconds: 0.0 });
    }

    /// Whether every step ran and held.
    pub fn all_held(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|line| line.outcome == Outcome::Held)
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let steps: Vec<Value> = self
            .0
            .iter()
            .map(|line| {
                json!({
                    "name": line.name,
                    "claim": line.claim,
                    "outcome": line.outcome.word(),
                    "detail": line.detail,
                    "seconds": (line.seconds * 1000.0).round() / 1000.0,
                })
            })
            .collect();
        json!({ "held": self.all_held(), "steps": steps })
    }

    /// For people.
    pub fn table(&self, colour: bool) -> String {
        let mut table = String::new();
        for line in &self.0 {
            let (on, off) = if colour { (line.outcome.colour(), "\x1b[0m") } else { ("", "") };
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{on}{:<8}{off}{:<14}{:>5.1} s  {}",
                line.outcome.word(),
                line.name,
                line.seconds,
                line.claim
            );
            if !line.detail.is_empty() {
                let _ = writeln!(table, "{:31}{}", "", line.detail.trim());
            }
        }
        let _ = writeln!(
            table,
            "{}",
            if self.all_held() { "Every step held." } else { "NOT every step held." }
        );
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_did_not_hold() {
        let mut verdicts = Verdicts::default();
        assert!(!verdicts.all_held());
        verdicts.add("a", "a claim", Instant::now(), true, String::new());
        assert!(verdicts.all_held());
        verdicts.skip("b", "another");
        assert!(!verdicts.all_held());
        assert_eq!(verdicts.json()["steps"][1]["outcome"], "not-run");
        assert!(!verdicts.table(false).contains('\x1b'));
    }
}
