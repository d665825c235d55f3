//! One machine with a NIC, and the real program on it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use killswitch::lab::{Context, Error, Host, Result};
use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_killswitch");
pub const PRIVATE_KEY: &str = "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=";
pub const PRESHARED_KEY: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
pub const PUBLIC_KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A managed tunnel with both kinds of secret; `[allow]` can be appended.
pub const TUNNEL: &str = r#"
[tunnel]
interface = "wg0"
private_key_file = "private.key"
addresses = ["10.64.0.2/32", "fd00:64::2/128"]

[[server]]
name = "se-sto-1"
endpoints = ["198.51.100.7:51820", "198.51.100.7:443"]
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
preshared_key_file = "psk.key"
"#;

/// What a command said.
#[derive(Debug, Clone)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails unless the exit status is this.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Fails unless standard error holds each of these.
    #[track_caller]
    pub fn complains(self, of: &[&str]) -> Self {
        for words in of {
            assert!(self.err.contains(words), "{words:?} is not in {self:?}");
        }
        self
    }
}

/// A machine under test with its files in a folder of root's.
pub struct Machine {
    pub host: Host,
    /// What is at the NIC's other end.
    pub far: Host,
    folder: tempfile::TempDir,
}

impl Machine {
    pub fn new() -> Result<Self> {
        let (host, far) = (Host::new("machine")?, Host::new("far")?);
        for one in [&host, &far] {
            one.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        }
        host.ip(&format!("link add eth0 type veth peer name far0 netns {}", far.path()))?;
        far.ip("address add 192.168.1.1/24 dev far0\nlink set far0 up")?;
        // No address that comes a second later: listings are compared.
        host.ip("link set eth0 addrgenmode none
             address add 192.168.1.50/24 dev eth0
             link set eth0 up
             route add default via 192.168.1.1")?;
        // /run is this process's own.
        let folder = tempfile::tempdir_in("/run").during("a folder")?;
        set_mode(folder.path(), 0o755)?;
        let machine = Machine { host, far, folder };
        machine.write("private.key", PRIVATE_KEY, 0o600)?;
        machine.write("psk.key", PRESHARED_KEY, 0o600)?;
        machine.configure(TUNNEL)?;
        Ok(machine)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).during(name)?;
        set_mode(&path, mode)
    }

    /// The configuration in use.
    pub fn configure(&self, text: &str) -> Result<()> {
        self.write("killswitch.toml", text, 0o644)
    }

    /// The program with the configuration in use; who runs the tests over SSH is not cut off.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("--config")
            .arg(self.path("killswitch.toml"))
            .args(arguments)
            .env("SSH_CONNECTION", "127.0.0.1 50000 127.0.0.1 22")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, mut command: Command) -> Result<Run> {
        let output = self.host.run(|| command.output())?.during("starting the program")?;
        Ok(Run {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    pub fn killswitch(&self, arguments: &[&str]) -> Result<Run> {
        self.run(self.command(arguments))
    }

    /// A shell on a terminal of its own that runs the program, with this typed in.
    pub fn on_a_terminal(&self, arguments: &str, typed: &str) -> Result<Run> {
        let line = format!(
            "printf '{typed}' | timeout 30 script -qec '{PROGRAM} --config {} {arguments}' /dev/null",
            self.path("killswitch.toml").display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("TERM", "xterm").env_remove("NO_COLOR");
        self.run(command)
    }

    pub fn status(&self) -> Result<Value> {
        Ok(self.killswitch(&["--json", "status"])?.json())
    }

    /// What another program does to the rules, in nft's words.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.host.feed("timeout", &["20", "nft", "-f", "-"], script)
    }

    /// The `inet` table as nft lists it, handles and all, but for what counters have seen.
    pub fn table(&self) -> Result<String> {
        let arguments = ["20", "nft", "-j", "list", "table", "inet", "killswitch"];
        let output = self.host.output("timeout", &arguments)?;
        let Ok(mut json) = serde_json::from_slice(&output.stdout) else {
            return Ok("no table".into());
        };
        forget(&mut json, &["packets", "bytes"]);
        Ok(json.to_string())
    }

    /// The same without handles and in an order of its own: how it came to be does not show.
    pub fn contents(&self) -> Result<Vec<String>> {
        let mut json: Value = serde_json::from_str(&self.table()?).during("the table")?;
        forget(&mut json, &["handle"]);
        let mut list: Vec<String> = json["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|it| it.get("metainfo").is_none() && it.get("table").is_none())
            .map(Value::to_string)
            .collect();
        // Rules are in order within their chain; chains and sets are listed as they were made.
        list.sort_by_key(|it| it.split("\"expr\"").next().map(str::to_owned));
        Ok(list)
    }

    /// Policy rules and routes of both families.
    pub fn routing(&self) -> Result<String> {
        let mut all = String::new();
        for arguments in [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
        ] {
            all += &self.host.command("ip", arguments)?;
        }
        Ok(all)
    }

    /// Whether a table of ours is there: nft cannot write one with an owner as JSON.
    pub fn has_table(&self) -> Result<bool> {
        let tables = self.host.command("timeout", &["20", "nft", "list", "tables"])?;
        Ok(tables.contains("table inet killswitch"))
    }

    /// Whether a ping to the other end is answered.
    pub fn reaches_the_other_end(&self) -> Result<bool> {
        let output = self.host.output("ping", &["-c1", "-W1", "192.168.1.1"])?;
        Ok(output.status.success())
    }
}

pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).during(path.display())
}

/// A command run without privileges: as nobody, or where there is no nobody, without capabilities.
pub fn without_privileges(command: Command) -> Command {
    let mut bare = Command::new("setpriv");
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().nth(2).and_then(|it| it.parse::<u64>().ok()) > Some(65534) {
        bare.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    bare.args(["--inh-caps=-all", "--bounding-set=-all"]);
    bare.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    bare
}

/// A copy of the program that everybody may run.
pub fn public_program(machine: &Machine) -> Result<PathBuf> {
    let path = machine.path("program");
    fs::copy(PROGRAM, &path).during("copying the program")?;
    set_mode(&path, 0o755)?;
    Ok(path)
}

fn forget(json: &mut Value, keys: &[&str]) {
    match json {
        Value::Object(map) => {
            map.retain(|key, _| !keys.contains(&key.as_str()));
            map.values_mut().for_each(|value| forget(value, keys));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| forget(value, keys)),
        _ => {}
    }
}

/// A failure in words.
pub fn failed(words: impl std::fmt::Display) -> killswitch::lab::harness::Failed {
    Error::new(words).into()
}
