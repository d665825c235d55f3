//! What kernel, WireGuard and daemon say together.

use crate::config::Config;
use crate::daemon::calls::Report;
use crate::lock::{self, State, Status};
use crate::policy::Policy;
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
    if status.state == State::Connected && reading.handshake_age.is_none() {
        status.state = State::Blocked;
    }
}

/// What the daemon is at, besides.
pub fn add_report(status: &mut Status, report: &Report) {
    status.daemon = true;
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
