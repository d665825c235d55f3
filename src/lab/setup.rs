//! Configures the program under test, and runs it in the client.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use super::addresses::*;
use super::error::{Context, Error, Result};
use super::topology::Lab;
use super::wireguard::KeyPair;

/// Private to the mount namespace, in its tmpfs.
const DIRECTORY: &str = "/run/killswitch-lab";

/// Called by this name, the laboratory's program is a userspace WireGuard.
pub const WIREGUARD: &str = "killswitch-wireguard";

/// The installed program: beside this one (target/debug), or one directory up for tests
/// (target/debug/deps).
///
/// # Errors
/// If it is in neither.
pub fn program() -> Result<PathBuf> {
    beside("killswitch")
}

/// A program that is a userspace WireGuard, for KILLSWITCH_WIREGUARD: nothing need be installed.
///
/// # Errors
/// If the laboratory's own program is not beside this one; those of files.
pub fn wireguard() -> Result<PathBuf> {
    let path = directory()?.join(WIREGUARD);
    if !path.exists() {
        let program = beside("killswitch-lab")?;
        std::os::unix::fs::symlink(program, &path).during(path.display())?;
    }
    Ok(path)
}

fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().during("finding this program")?;
    let candidates = own.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let directory = own.parent().unwrap_or(Path::new("/")).display();
        Error::new(format!("no program {name} in {directory}: build or install it first"))
    })
}

/// Where the programs and files of the client are.
pub(super) fn directory_name() -> &'static str {
    DIRECTORY
}

fn directory() -> Result<&'static Path> {
    let directory = Path::new(DIRECTORY);
    if !directory.is_dir() {
        DirBuilder::new().mode(0o700).create(directory).during(DIRECTORY)?;
    }
    Ok(directory)
}

/// Writes the client's configuration, for both servers, and its key. `more` is added at the end,
/// e.g. an `[allow]` table.
///
/// # Errors
/// Those of files.
pub fn write_configuration(lab: &Lab, more: &str) -> Result<PathBuf> {
    let directory = directory()?;
    let key = directory.join("private.key");
    write_private(&key, &format!("{}\n", lab.client_keys.private_text()))?;
    let mut text = format!(
        r#"[lock]
at_boot = false

[tunnel]
kind = "wireguard"
backend = "userspace"
interface = "{TUNNEL_LINK}"
private_key_file = "{key}"
addresses = ["{TUNNEL_V4}/32", "{TUNNEL_V6}/128"]
mtu = 1420
"#,
        key = key.display(),
    );
    for server in &lab.servers {
        let endpoints = [server.endpoint_v4, server.endpoint_v6];
        text.push_str(&server_table(server.host.name(), endpoints, &server.keys));
    }
    text.push_str(more);
    let file = directory.join("killswitch.toml");
    write_private(&file, &text)?;
    Ok(file)
}

/// A server in the configuration's words.
pub fn server_table(name: &str, [v4, v6]: [SocketAddr; 2], keys: &KeyPair) -> String {
    format!(
        r#"
[[server]]
name = "{name}"
endpoints = ["{v4}", "{v6}"]
public_key = "{public}"
allowed_ips = ["0.0.0.0/0", "::/0"]
persistent_keepalive = 25
"#,
        public = keys.public_text(),
    )
}

/// Runs `killswitch --config FILE ARGUMENTS` in the client, whatever its exit status.
///
/// # Errors
/// If it cannot be started.
pub fn killswitch(
    lab: &Lab,
    program: &Path,
    configuration: &Path,
    arguments: &[&str],
) -> Result<Output> {
    let path = program.to_str().ok_or_else(|| Error::new("the program's path is not UTF-8"))?;
    let file = configuration.to_str().ok_or_else(|| Error::new("a path is not UTF-8"))?;
    // The SSH session of whoever runs this is not in the client's network.
    let mut words = vec!["-u", "SSH_CONNECTION", "-u", "SSH_CLIENT", "-u", "SSH_TTY", path];
    words.extend(["--config", file]);
    words.extend(arguments);
    lab.client.output("env", &words)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    // Written anew: a file's mode counts only when it is made.
    if path.exists() {
        fs::remove_file(path).during(path.display())?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .during(path.display())
}
