//! `status`: the kernel's view.

use super::Failure;
use super::args::Arguments;
use super::change::load_or_strictest;
use super::output::{Style, harmless, json, say, styled};
use crate::lock::{self, State, Status};

/// Exit status where nothing can be told.
const CANNOT_TELL: u8 = 30;

pub(super) fn status(arguments: &Arguments) -> Result<u8, Failure> {
    let (policy, complaint) = load_or_strictest(arguments);
    let live =
        lock::read().map_err(|error| Failure { code: CANNOT_TELL, ..Failure::from(error) })?;
    let status = Status::of(&live, &policy, complaint);
    if arguments.json {
        json(&status);
    } else {
        print(&status);
    }
    Ok(status.exit_code())
}

fn print(status: &Status) {
    let (style, word, meaning) = match status.state {
        State::Connected => (Style::Green, "connected", "locked, and the tunnel's link is up"),
        State::Connecting => (Style::Yellow, "connecting", "locked; nothing leaves in clear"),
        State::Blocked => (Style::Yellow, "blocked", "locked, no tunnel; nothing leaves"),
        State::Open => (Style::Red, "open", open_meaning(status)),
        State::Damaged => (Style::Red, "damaged", "not what the configuration asks for"),
    };
    say(&format!("state     {}: {meaning}", styled(style, word)));
    if let Some(tunnel) = &status.tunnel {
        let state = if tunnel.up { "up" } else { "down or absent" };
        say(&format!(
            "tunnel    {} {state}, {} received, {} sent",
            tunnel.interface,
            bytes(tunnel.rx_bytes),
            bytes(tunnel.tx_bytes)
        ));
    }
    let layers = &status.layers;
    let mark = |holds: bool| match holds {
        true => styled(Style::Green, "intact"),
        false => styled(Style::Red, "not intact"),
    };
    say(&format!("table     {}{}", mark(layers.table), if layers.owned { ", owned" } else { "" }));
    let links = if layers.egress.is_empty() {
        "no links".to_owned()
    } else {
        harmless(&layers.egress.join(", "))
    };
    say(&format!("egress    {links}"));
    let routes = match status.routing_guard {
        true => mark(layers.routes),
        false => "none with an external tunnel".to_owned(),
    };
    say(&format!("routes    {routes}"));
    say(&format!("daemon    {}", if status.daemon { "running" } else { "not running" }));
    for (chain, reasons) in &status.dropped {
        for (reason, count) in reasons.iter().filter(|(_, count)| count.packets > 0) {
            let (chain, reason) = (harmless(chain), harmless(reason));
            let (packets, size) = (count.packets, bytes(count.bytes));
            say(&format!("dropped   {chain}: {reason}: {packets} packets, {size}"));
        }
    }
    for reason in &status.degraded {
        say(&format!("{}  {}", styled(Style::Yellow, "degraded"), harmless(reason)));
    }
}

/// Without its table the lock is open, though other layers may still stop most.
fn open_meaning(status: &Status) -> &'static str {
    match (status.layers.routes, status.layers.egress.is_empty()) {
        (false, true) => "not locked; everything may leave in clear",
        _ => "the table is gone; only other layers still hold: run `killswitch lock`",
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}
