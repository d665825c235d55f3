//! Waking, as logind tells of it: a bus of our own, and somebody who bears logind's name.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use killswitch::lab::harness::Outcome;
use killswitch::lab::{Bus, Context, Error, Host};

use crate::roles;
use crate::told::within;

pub fn logind_tells_of_waking() -> Outcome {
    let host = Host::new("client")?;
    let _bus = Bus::start(&host)?;
    let mut sleeper = roles::command("sleeper");
    sleeper.env("DBUS_SYSTEM_BUS_ADDRESS", Bus::ADDRESS).stdout(Stdio::piped());
    let mut sleeper = host.start(sleeper)?;
    let output = sleeper.child().stdout.take().ok_or("no output")?;
    let mut lines = BufReader::new(output).lines();
    assert_eq!(lines.next().ok_or("no word")??, "waiting");
    within(&host, || async {
        let logind = zbus::connection::Builder::address(Bus::ADDRESS)
            .name("org.freedesktop.login1")
            .build()
            .await
            .during("bus")?;
        let tell = async |sleeping: bool| {
            let (path, interface) = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager");
            let to = None::<zbus::names::BusName<'_>>;
            let told = logind.emit_signal(to, path, interface, "PrepareForSleep", &sleeping);
            told.await.during("signal")
        };
        // Falling asleep is not waking; it may not listen yet, so it is told again.
        for _ in 0..20 {
            tell(true).await?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(sleeper.child().try_wait().during("sleeper")?.is_none(), "woken by falling asleep");
        while sleeper.child().try_wait().during("sleeper")?.is_none() {
            tell(false).await?;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    })?;
    match lines.next() {
        Some(Ok(word)) if word == "resumed" => Ok(()),
        other => Err(Error::new(format!("said {other:?}")).into()),
    }
}
