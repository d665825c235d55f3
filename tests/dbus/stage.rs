//! A laboratory with a bus and a daemon that is connected.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use killswitch::lab::harness::eventually;
use killswitch::lab::{Bus, Context, Daemon, Error, Lab, Result, setup};

use crate::caller::Caller;

/// The preshared key of a server that is never there.
pub const PRESHARED_KEY: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const PRESHARED_KEY_FILE: &str = "/run/killswitch-test-preshared.key";

/// Dropped in this order: those who use the laboratory first.
pub struct Stage {
    pub caller: Caller,
    pub daemon: Daemon,
    _bus: Bus,
    pub configuration: PathBuf,
    pub lab: Lab,
}

impl Stage {
    /// Locked, connected and on the bus.
    pub fn set() -> Result<Self> {
        Self::set_with("")
    }

    /// As [`Stage::set`], with more configuration.
    pub fn set_with(more: &str) -> Result<Self> {
        let (lab, configuration) = Self::lab(more)?;
        let bus = Bus::start(&lab.client)?;
        let daemon = Daemon::start_and_wait(&lab, &setup::program()?, &configuration)?;
        let caller = Caller::on_the_bus()?;
        let stage = Stage { caller, daemon, _bus: bus, configuration, lab };
        stage.wait_for("State", "connected")?;
        Ok(stage)
    }

    /// The laboratory, with the daemon's configuration.
    pub fn lab(more: &str) -> Result<(Lab, PathBuf)> {
        let lab = Lab::with_servers()?;
        let configuration = configure(&lab, more)?;
        Ok((lab, configuration))
    }

    /// Until a property of text has this value.
    pub fn wait_for(&self, property: &str, value: &str) -> Result<()> {
        eventually(&format!("{property} becomes {value}"), || {
            Ok(self.caller.property::<String>(property).is_ok_and(|it| it == value))
        })
    }

    /// What `killswitch` prints with these arguments, as JSON.
    pub fn ask(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let program = setup::program()?;
        let all = [&["--json"][..], arguments].concat();
        let output = setup::killswitch(&self.lab, &program, &self.configuration, &all)?;
        serde_json::from_slice(&output.stdout).during(words(&output))
    }

    /// What `busctl` prints of a call's result, as JSON, without the types.
    pub fn busctl(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let to = ["--json=short", "call", "org.killswitch1", "/org/killswitch1"];
        let all = [&to[..], &["org.killswitch1.Manager"], arguments].concat();
        let output = self.lab.client.output("busctl", &all)?;
        if !output.status.success() {
            return Err(Error::new(words(&output)));
        }
        // Nothing is printed of an empty result.
        let text = if output.stdout.is_empty() { b"null" } else { &output.stdout[..] };
        serde_json::from_slice(text).map(plain).during(words(&output))
    }
}

/// busctl(1): a variant is an object of its "type" and its "data".
fn plain(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(mut entries) if entries.len() == 2 && entries.contains_key("type") => {
            plain(entries.remove("data").unwrap_or_default())
        }
        Value::Object(entries) => {
            Value::Object(entries.into_iter().map(|(key, value)| (key, plain(value))).collect())
        }
        Value::Array(values) => values.into_iter().map(plain).collect(),
        other => other,
    }
}

/// Both servers of the laboratory, and one that is nowhere.
pub fn configure(lab: &Lab, more: &str) -> Result<PathBuf> {
    write_private(Path::new(PRESHARED_KEY_FILE), PRESHARED_KEY)?;
    let nowhere = format!(
        "[[server]]\n\
         name = \"nowhere\"\n\
         endpoints = [\"198.51.100.66:51820\"]\n\
         public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
         preshared_key_file = \"{PRESHARED_KEY_FILE}\"\n\
         {more}"
    );
    setup::write_configuration(lab, &nowhere)
}

/// A file that only root may read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).during(path.display())?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).during(path.display())
}

/// What a program printed, then what it warned.
pub fn words(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part));
    text.concat().trim().to_owned()
}
