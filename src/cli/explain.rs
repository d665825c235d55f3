//! `explain`: which rule decides on a packet, and why.

use super::Failure;
use super::args::Arguments;
use super::change::load_or_strictest;
use super::output::{Style, json, say, styled, warning};
use crate::explain::{Words, decide};
use crate::ruleset::TABLE;
use crate::ruleset::model::Verdict;

pub(super) fn explain(arguments: &Arguments, words: &Words) -> Result<u8, Failure> {
    let (_, policy, complaint) = load_or_strictest(arguments);
    if let Some(complaint) = &complaint {
        warning(&format!("{complaint}; this is what the strictest lock does"));
    }
    let decision = decide(words, &policy).map_err(Failure::usage)?;
    if arguments.json {
        json(&decision.document(complaint.is_some()));
        return Ok(0);
    }
    let verdict = match decision.verdict {
        Verdict::Accept => styled(Style::Green, "passes"),
        Verdict::Drop => styled(Style::Red, "is dropped"),
        Verdict::Reject => styled(Style::Red, "is refused, and the sender is told at once"),
    };
    say(&format!("the packet {verdict}: {}", decision.reason));
    say(&format!("decided by table {} {TABLE}, chain {}", decision.family, decision.chain));
    if let Some(rule) = &decision.rule {
        say(&format!("    {rule}"));
    }
    Ok(0)
}
