//! When the machine woke from sleep.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::StreamExt;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::bus::BusAppears;
use super::listener::register;

/// Sleep shorter than this breaks no connection, and two clocks are not read at one moment.
const SHORTEST: Duration = Duration::from_millis(100);
/// Kernel and logind tell of the same sleep within this time.
const ONE_SLEEP: Duration = Duration::from_secs(5);

/// Waits until the machine wakes from sleep. Nothing runs meanwhile, no timer either.
///
/// Two signs, either of which is enough: the kernel's (the clock that counts sleep is ahead of the
/// one that does not; works without a bus) and logind's PrepareForSleep(false) (also told when a
/// machine slept so lightly that its clocks went on). Within a tokio runtime with I/O and time.
pub struct Sleep {
    clock: AsyncFd<OwnedFd>,
    slept: Duration,
    told: Option<Duration>,
    logind: JoinHandle<()>,
    signals: mpsc::Receiver<()>,
}

impl Sleep {
    /// Begins to wait.
    ///
    /// # Errors
    /// Those of `timerfd_create(2)`.
    pub fn open() -> io::Result<Self> {
        let (sender, signals) = mpsc::channel(1);
        Ok(Sleep {
            clock: register(clock_changes()?, Interest::READABLE)?,
            slept: slept()?,
            told: None,
            logind: tokio::spawn(listen_to_logind(sender)),
            signals,
        })
    }

    /// Returns once the machine woke. Whoever drops the future before its end loses nothing.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub async fn resumed(&mut self) -> io::Result<()> {
        loop {
            let signalled = tokio::select! {
                Some(()) = self.signals.recv() => true,
                ready = self.clock.ready(Interest::READABLE) => {
                    ready?.retain_ready();
                    false
                }
            };
            let woke = match signalled {
                true => true,
                false => self.clock_changed() && self.has_slept()?,
            };
            let now = now(nix::time::ClockId::CLOCK_BOOTTIME)?;
            if woke && self.told.is_none_or(|told| now.saturating_sub(told) > ONE_SLEEP) {
                self.told = Some(now);
                return Ok(());
            }
        }
    }

    fn clock_changed(&self) -> bool {
        let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, &mut [0; 8])?);
        match self.clock.try_io(Interest::READABLE, read) {
            Err(error) => error.raw_os_error() == Some(Errno::ECANCELED as i32),
            Ok(_) => true,
        }
    }

    /// Somebody who sets the clock cancels the timer, too.
    fn has_slept(&mut self) -> io::Result<bool> {
        let before = std::mem::replace(&mut self.slept, slept()?);
        Ok(self.slept.saturating_sub(before) >= SHORTEST)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.logind.abort();
    }
}

/// A timer that never ends, and is cancelled when the clock jumps: on waking (timerfd_resume), and
/// when it is set. It stays armed then.
fn clock_changes() -> io::Result<OwnedFd> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
    timer.set(
        Expiration::OneShot(TimeSpec::new(i64::MAX, 0)),
        TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
    )?;
    Ok(timer.into())
}

/// How long the machine has slept since it started.
fn slept() -> io::Result<Duration> {
    let awake = now(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(now(nix::time::ClockId::CLOCK_BOOTTIME)?.saturating_sub(awake))
}

fn now(clock: nix::time::ClockId) -> io::Result<Duration> {
    Ok(clock_gettime(clock)?.into())
}

/// Tells of every waking that logind tells of, for ever; without a bus the kernel's sign remains.
async fn listen_to_logind(wakings: mpsc::Sender<()>) {
    let mut appears = BusAppears::new();
    loop {
        // Why there is no bus does not matter: it is asked for again.
        if hear(&wakings).await.is_ok() {
            appears.reset();
        }
        appears.wait().await;
    }
}

/// Until the bus goes.
async fn hear(wakings: &mpsc::Sender<()>) -> zbus::Result<()> {
    let bus = zbus::Connection::system().await?;
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.login1")
        .path("/org/freedesktop/login1")
        .interface("org.freedesktop.login1.Manager")
        .member("PrepareForSleep")
        .build()?;
    let mut signals = zbus::MessageStream::for_match_rule(rule, &bus, None).await?;
    while let Some(Ok(signal)) = signals.next().await {
        if signal.body().deserialize::<bool>().is_ok_and(|falls_asleep| !falls_asleep) {
            // One that waits to be taken says all.
            let _ = wakings.try_send(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_can_be_had_and_does_not_end() {
        let fd = clock_changes().unwrap();
        let read = nix::unistd::read(&fd, &mut [0; 8]);
        assert_eq!(read, Err(Errno::EAGAIN));
    }
}
