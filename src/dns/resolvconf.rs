//! resolvconf(8), openresolv's and Debian's.

use std::io::ErrorKind;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{ETC, Error, Resolvers, in_time};

/// Where distributions put the command, whatever our own environment says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn set(resolvers: &Resolvers) -> Result<(), Error> {
    // -x: the only ones, -m 0: the first; Debian's takes neither and ignores both.
    run(&["-a", &record(&resolvers.interface), "-m", "0", "-x"], &resolvers.text()).await
}

/// Debian's resolvconf lists the others behind ours: the first is what counts.
pub(super) fn is_set(resolvers: &Resolvers) -> bool {
    let contents = std::fs::read_to_string(format!("{ETC}/resolv.conf"));
    let first = |contents: String| {
        let mut servers = contents.lines().filter_map(|line| line.strip_prefix("nameserver "));
        servers.next().and_then(|server| server.trim().parse().ok())
    };
    contents.is_ok_and(|contents| first(contents) == resolvers.servers.first().copied())
}

/// Does nothing if there is no such record, as without the command.
pub(super) async fn restore(interface: &str) -> Result<(), Error> {
    match run(&["-d", &record(interface), "-f"], "").await {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Debian's resolvconf goes by names: `tun*` comes before every physical link
/// (/etc/resolvconf/interface-order).
fn record(interface: &str) -> String {
    format!("tun.{interface}.killswitch")
}

async fn run(arguments: &[&str], input: &str) -> Result<(), Error> {
    in_time("resolvconf", async {
        let failed = |error: std::io::Error| Error::Resolvconf(error.to_string());
        let mut child = Command::new("resolvconf")
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::File { doing: "run", path: "resolvconf".into(), source })?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that does not read says why by its status.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(Error::Resolvconf(format!("{}: {}", output.status, words.trim())))
    })
    .await
}
