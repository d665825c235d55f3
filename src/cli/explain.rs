//! `explain`: which rule decides on a packet, and why; what would let it pass.

use std::io::BufRead;

use super::Failure;
use super::args::{Arguments, Explain};
use super::change::{complaint, load_or_strictest};
use super::failure::FAILED;
use super::output::{Style, harmless, json, say, stream, styled, warning};
use crate::config::Config;
use crate::explain::{Addition, Answer, Layer, Remedy, Words, decide, line};
use crate::policy::Policy;
use crate::ruleset::model::Verdict;

/// What is asked.
struct Asked {
    config: Option<Config>,
    policy: Policy,
}

impl Asked {
    fn answer(&self, words: &Words) -> Result<Answer, String> {
        decide(words, &self.policy, self.config.as_ref())
    }
}

pub(super) fn explain(arguments: &Arguments, options: &Explain) -> Result<u8, Failure> {
    let (config, policy, error) = load_or_strictest(arguments);
    match error {
        // What holds may be anything.
        Some(error) if error.is_forbidden() => return Err(error.into()),
        Some(error) => {
            warning(&format!("{}; this is what the strictest lock does", complaint(&error)));
        }
        None => {}
    }
    let asked = Asked { config, policy };
    match options.line.as_deref() {
        None => {
            let answer = asked.answer(&options.words).map_err(Failure::usage)?;
            match arguments.json {
                true => json(&answer.document(asked.config.is_none())),
                false => in_words(&answer).iter().for_each(|line| say(line)),
            }
            Ok(0)
        }
        Some("-") => every_line(arguments, &asked, &options.words),
        Some(text) => {
            let (read, answer) = of_line(&asked, text, &options.words).map_err(Failure::usage)?;
            match arguments.json {
                true => json(&document(&asked, text, &read, &answer)),
                false => lines_in_words(&read, &answer).iter().for_each(|line| say(line)),
            }
            Ok(0)
        }
    }
}

/// The line's packet, with what was said besides.
fn of_line(asked: &Asked, text: &str, besides: &Words) -> Result<(line::Read, Answer), String> {
    let read = line::read_besides(text, besides)?;
    let answer = asked.answer(&read.words)?;
    Ok((read, answer))
}

/// One answer to each; what cannot be read is said, and the rest goes on.
fn every_line(arguments: &Arguments, asked: &Asked, besides: &Words) -> Result<u8, Failure> {
    let mut unread = 0_u64;
    for bytes in std::io::stdin().lock().split(b'\n') {
        let bytes = bytes?;
        let text = String::from_utf8_lossy(&bytes);
        if text.trim().is_empty() || line::is_other_event(&text) {
            continue;
        }
        let said = match (of_line(asked, &text, besides), arguments.json) {
            (Ok((read, answer)), true) => document(asked, &text, &read, &answer).to_string(),
            (Ok((read, answer)), false) => {
                let mut lines = vec![harmless(&text)];
                lines
                    .extend(lines_in_words(&read, &answer).into_iter().map(|it| format!("  {it}")));
                lines.join("\n")
            }
            (Err(why), as_json) => {
                unread += 1;
                match as_json {
                    true => serde_json::json!({ "line": text, "unread": why }).to_string(),
                    false => format!("{}\n  cannot be read: {}", harmless(&text), harmless(&why)),
                }
            }
        };
        if stream(&said).is_err() {
            return Ok(0);
        }
    }
    match unread {
        0 => Ok(0),
        unread => {
            warning(&format!("lines that could not be read as packets: {unread}"));
            Ok(FAILED)
        }
    }
}

fn document(asked: &Asked, text: &str, read: &line::Read, answer: &Answer) -> serde_json::Value {
    let mut document = answer.document(asked.config.is_none());
    document["line"] = text.into();
    document["assumed"] = read.assumed.clone().into();
    document
}

fn lines_in_words(read: &line::Read, answer: &Answer) -> Vec<String> {
    let assumed = read.assumed.iter().map(|what| format!("assumed: {what}"));
    in_words(answer).into_iter().chain(assumed).collect()
}

fn in_words(answer: &Answer) -> Vec<String> {
    let Layer { layer, chain, verdict, rule, reason } = &answer.decision;
    let words = match verdict {
        Verdict::Accept => styled(Style::Green, "passes"),
        Verdict::Drop => styled(Style::Red, "is dropped"),
        Verdict::Reject => styled(Style::Red, "is refused, and the sender is told at once"),
    };
    let mut lines = vec![format!("the packet {words}: {reason}")];
    let chain = chain.as_deref().unwrap_or_default();
    lines.push(format!("decided by table {layer}, chain {chain}"));
    lines.extend(rule.iter().map(|rule| format!("    {rule}")));
    lines.push(format!("because of: {}", harmless(&answer.cause.words)));
    lines.extend(answer.others().map(|layer| other(layer, *verdict)));
    match &answer.remedy {
        None => {}
        Some(Ok(remedy)) => lines.extend(remedy_in_words(remedy)),
        Some(Err(why)) => lines.push(format!("nothing can allow it: {}", harmless(why))),
    }
    lines
}

fn other(layer: &Layer, decided: Verdict) -> String {
    let but = if decided == Verdict::Accept { "but" } else { "besides," };
    let does = match layer.verdict {
        Verdict::Reject => "refuses",
        _ => "drops",
    };
    let place = match &layer.chain {
        Some(chain) => format!("{}, chain {chain},", layer.layer),
        None => format!("the {}", layer.layer),
    };
    format!("{but} {place} {does} it: {}", layer.reason)
}

fn remedy_in_words(remedy: &Remedy) -> Vec<String> {
    let mut lines = vec!["if it should pass:".to_owned()];
    for Addition { key, item, value, place } in &remedy.add {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        match (place, item) {
            (Some(place), true) => {
                lines.push(format!("    at {}: add {value} to {key}", harmless(place)))
            }
            (Some(place), false) => {
                lines.push(format!("    at {}: {name} = {value}", harmless(place)))
            }
            (None, _) => lines.extend([format!("    [{table}]"), format!("    {name} = {value}")]),
        }
    }
    lines.extend(remedy.exception.iter().map(|command| format!("    or for a while: {command}")));
    lines.push(format!("    the risk: {}", remedy.risk));
    lines
}
