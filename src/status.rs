//! What kernel, WireGuard and daemon say together.

use std::time::Duration;

use crate::config::Config;
use crate::daemon;
use crate::daemon::calls::{Excepted, Report};
use crate::lock::{self, State, Status};
use crate::policy::{Exception, Policy};
use crate::wireguard::Device;

/// Reads the kernel, and WireGuard where the tunnel is ours: the daemon may be dead.
///
/// # Errors
/// [`lock::Error`]; nobody without CAP_NET_ADMIN may read the tables.
pub fn read(
    config: Option<&Config>,
    policy: &Policy,
    complaint: Option<String>,
) -> Result<Status, lock::Error> {
    let mut status = Status::of(&lock::read()?, policy, complaint);
    if let Some(config) = config.filter(|config| config.tunnel.is_managed()) {
        add_wireguard(&mut status, config);
    }
    Ok(status)
}

fn add_wireguard(status: &mut Status, config: &Config) {
    let Some(tunnel) = status.tunnel.as_mut().filter(|tunnel| tunnel.up) else { return };
    let Ok(Some(reading)) = Device::new(config).read() else { return };
    tunnel.last_handshake_age_s = reading.handshake_age.map(|age| age.as_secs());
    (tunnel.rx_bytes, tunnel.tx_bytes) = (reading.received, reading.sent);
    if let Some(candidate) = reading.candidate {
        tunnel.server = config.servers.get(candidate.server).map(|server| server.name.clone());
        tunnel.endpoint = Some(candidate.endpoint.to_string());
    }
    let routed = tunnel.routed;
    if status.state == State::Connected && (reading.handshake_age.is_none() || !routed) {
        status.state = State::Blocked;
    }
    if reading.handshake_age.is_some() && !routed {
        let interface = &tunnel.interface;
        status.degraded.push(format!(
            "no route leads into {interface}: nothing gets through; run `killswitch reconnect`"
        ));
    }
}

/// What the daemon is at, besides.
pub fn add_report(status: &mut Status, report: &Report) {
    status.daemon = true;
    status.exceptions = exceptions(&report.exceptions);
    status.state = match (status.state, report.tunnel.as_str()) {
        (State::Connected | State::Blocked, "connecting" | "waiting") => State::Connecting,
        (State::Connected, "off") => State::Blocked,
        (kernel, _) => kernel,
    };
    for reason in &report.degraded {
        if !status.degraded.contains(reason) {
            status.degraded.push(reason.clone());
        }
    }
}

/// What is open for a while, and for how long from now.
pub fn exceptions(all: &[Excepted]) -> Vec<lock::Exception> {
    let now = daemon::now();
    let left = |it: &Excepted| Duration::from_micros(it.ends).saturating_sub(now).as_secs();
    let timed = |it: &Excepted| lock::Exception {
        id: it.id,
        kind: it.kind.clone(),
        what: it.what.clone(),
        left_s: left(it),
    };
    all.iter().map(timed).collect()
}

/// The policy with those exceptions that a daemon told of. What this configuration could not have is
/// left out, and shows as damage where the kernel has it.
pub fn with_exceptions(policy: &Policy, config: Option<&Config>, told: &[Excepted]) -> Policy {
    let Some(config) = config else { return policy.clone() };
    let known = |it: &Excepted| {
        Exception::parse(&it.kind, &it.what).ok().filter(|it| it.check(config).is_ok())
    };
    policy.with(&told.iter().filter_map(known).collect::<Vec<_>>())
}
