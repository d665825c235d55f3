//! systemd: ready, status, watchdog.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often systemd must hear from us, if it asked for it.
pub(super) fn watchdog() -> Option<Duration> {
    // Half the time that it allows: sd_watchdog_enabled(3).
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

pub(super) fn alive() {
    notify(&[NotifyState::Watchdog]);
}

pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

pub(super) fn status(words: &str) {
    notify(&[NotifyState::Status(words)]);
}

/// Until [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Nothing happens where systemd did not start us; a manager that does not listen is its own
/// trouble.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
