//! A locked machine, and what the real program says of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use killswitch::lab::harness::{Failed, Outcome, eventually};
use killswitch::lab::host::Process;
use killswitch::lab::{Context, Daemon, Error, Host, Lab, Result, setup};
use serde_json::Value;

/// How the machine is before the sabotage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The daemon owns the tables, and the tunnel is up: no finding.
    Connected,
    /// Locked by the command, so that others can change the tables.
    Alone,
    /// As [`Setting::Alone`], without the egress guard.
    Unguarded,
}

impl Setting {
    /// By which probes something gets out of a machine that nobody sabotaged.
    pub fn leaks(self) -> &'static [&'static str] {
        match self {
            Setting::Connected | Setting::Alone => &[],
            Setting::Unguarded => &["packet-socket", "packet-socket-vlan"],
        }
    }

    /// What is found in a machine that nobody sabotaged.
    fn baseline(self) -> &'static [&'static str] {
        match self {
            Setting::Connected => &[],
            Setting::Alone => &["daemon-not-running"],
            Setting::Unguarded => &["daemon-not-running", "egress-guard-off"],
        }
    }
}

/// Who finds it.
#[derive(Debug, Clone, Copy)]
pub enum Finder {
    /// `audit`, with exactly these findings besides those of the setting.
    Audit(&'static [&'static str]),
    /// `leaktest` alone, by exactly these probes besides those of the setting.
    Leaktest(&'static [&'static str]),
    /// Both, with these findings and by these probes.
    Both(&'static [&'static str], &'static [&'static str]),
}

impl Finder {
    /// What `audit` finds.
    pub const fn findings(self) -> &'static [&'static str] {
        match self {
            Finder::Audit(ids) | Finder::Both(ids, _) => ids,
            Finder::Leaktest(_) => &[],
        }
    }

    /// By what `leaktest` sees it get out; `None`: it sees nothing of it.
    pub const fn probes(self) -> Option<&'static [&'static str]> {
        match self {
            Finder::Leaktest(probes) | Finder::Both(_, probes) => Some(probes),
            Finder::Audit(_) => None,
        }
    }
}

/// What a sabotage leaves behind. Dropped in this order: processes before where they are.
#[derive(Default)]
pub struct Harm {
    /// Killed when dropped.
    pub _processes: Vec<Process>,
    /// Other machines that the sabotage needs.
    pub _hosts: Vec<Host>,
    /// Commands of a shell that change the mounts which the program sees, and nobody else.
    pub mounts: String,
    /// It cannot be done in a user namespace.
    pub impossible: bool,
}

impl Harm {
    /// `act`, where root is root of the whole machine.
    pub fn by_root(act: impl FnOnce() -> Result<Harm>) -> Result<Harm> {
        let map = fs::read_to_string("/proc/self/uid_map").during("uid_map")?;
        match map.split_whitespace().last() == Some("4294967295") {
            true => act(),
            false => Ok(Harm { impossible: true, ..Harm::default() }),
        }
    }
}

impl From<Process> for Harm {
    fn from(process: Process) -> Self {
        Harm { _processes: vec![process], ..Harm::default() }
    }
}

impl From<()> for Harm {
    fn from((): ()) -> Self {
        Harm::default()
    }
}

/// One entry of the catalogue.
pub struct Sabotage {
    pub setting: Setting,
    pub finder: Finder,
    pub act: fn(&mut Stage) -> Result<Harm>,
}

/// What `audit --json` said.
#[derive(Debug)]
pub struct Audit {
    pub code: i32,
    pub report: Value,
}

impl Audit {
    /// What was found, in order of the alphabet, each kind once.
    pub fn ids(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().expect("findings");
        let mut ids: Vec<&str> = findings.iter().filter_map(|it| it["id"].as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Fails unless exactly these were found, and the exit status says so.
    pub fn must_find(&self, wanted: &[&str], when: &str) -> Outcome {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        let severity = |name: &str| {
            let findings = self.report["findings"].as_array().expect("findings");
            findings.iter().any(|it| it["severity"] == name)
        };
        let code = match (severity("critical"), severity("warning")) {
            (true, _) => 20,
            (_, true) => 10,
            _ if self.report["unchecked"] != serde_json::json!([]) => 30,
            _ => 0,
        };
        match self.ids() == wanted && self.code == code {
            true => Ok(()),
            false => Err(Failed::from(format!("{when}: wanted {wanted:?}, got {self:#?}"))),
        }
    }
}

/// What `leaktest --json` said.
#[derive(Debug)]
pub struct Leaktest {
    pub code: i32,
    pub report: Value,
}

impl Leaktest {
    /// Fails unless it leaked by exactly these probes, and the exit status says whether it did.
    pub fn must_leak_by(&self, wanted: &[&str], code: i32, when: &str) -> Outcome {
        let probes = self.report["probes"].as_array().expect("probes");
        let leaks = probes.iter().filter(|it| it["verdict"] == "leaked");
        let mut names: Vec<&str> = leaks.filter_map(|it| it["name"].as_str()).collect();
        let mut wanted = wanted.to_vec();
        names.sort_unstable();
        wanted.sort_unstable();
        match names == wanted && self.code == code {
            true => Ok(()),
            false => Err(Failed::from(format!(
                "{when}: wanted leaks by {wanted:?} and {code}, got {names:?}: {self:#?}"
            ))),
        }
    }
}

/// The machine. Dropped in this order: those who use the laboratory first.
pub struct Stage {
    pub daemon: Option<Daemon>,
    pub program: PathBuf,
    pub configuration: PathBuf,
    pub lab: Lab,
}

impl Stage {
    pub fn set(setting: Setting) -> Result<Self> {
        let lab = match setting {
            Setting::Connected => Lab::with_servers()?,
            Setting::Alone | Setting::Unguarded => Lab::new()?,
        };
        // As the package sets it.
        lab.client.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        let configuration = setup::write_configuration(&lab, "")?;
        // What an earlier test left.
        let _ = fs::remove_dir_all(configuration.with_extension("d"));
        let _ = fs::remove_dir_all("/run/killswitch");
        let mut stage = Stage { daemon: None, program: setup::program()?, configuration, lab };
        stage.edit("at_boot = false", "at_boot = true")?;
        if setting == Setting::Unguarded {
            stage.edit("[lock]", "[lock]\negress_guard = false")?;
        }
        match setting {
            Setting::Connected => stage.connect()?,
            Setting::Alone | Setting::Unguarded => stage.ask(&["lock"])?,
        }
        Ok(stage)
    }

    fn connect(&mut self) -> Result<()> {
        let daemon = Daemon::start_and_wait(&self.lab, &self.program, &self.configuration)?;
        self.daemon = Some(daemon);
        eventually("the daemon connects", || Ok(self.ask(&["status"]).is_ok()))
    }

    /// Replaces a part of the configuration.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let file = &self.configuration;
        let text = fs::read_to_string(file).during(file.display())?;
        fs::write(file, text.replacen(from, to, 1)).during(file.display())
    }

    /// A drop-in; only root may read it.
    pub fn drop_in(&self, name: &str) -> Result<PathBuf> {
        let directory = self.configuration.with_extension("d");
        fs::create_dir_all(&directory).during(directory.display())?;
        Ok(directory.join(name))
    }

    /// Runs the program, which must succeed.
    fn ask(&self, arguments: &[&str]) -> Result<()> {
        let output = setup::killswitch(&self.lab, &self.program, &self.configuration, arguments)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::new(String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Runs `audit` with these words in mounts that these commands change.
    pub fn audit_with(&self, mounts: &str, words: &[&str]) -> Result<std::process::Output> {
        let script = format!("{mounts}\nexec \"$@\"");
        let program = self.program.display().to_string();
        let file = self.configuration.display().to_string();
        let mut all = vec!["-m", "sh", "-ec", &script, "sh", &program, "--config", &file];
        all.extend(words);
        self.lab.client.output("unshare", &all)
    }

    pub fn audit(&self, mounts: &str) -> Result<Audit> {
        let output = self.audit_with(mounts, &["--json", "audit"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Audit {
            code: output.status.code().unwrap_or(-1),
            report: serde_json::from_slice(&output.stdout).during(said)?,
        })
    }

    /// Runs `leaktest` in the same mounts, without disturbing anything.
    pub fn leaktest(&self, mounts: &str) -> Result<Leaktest> {
        let output = self.audit_with(mounts, &["--json", "leaktest"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Leaktest {
            code: output.status.code().unwrap_or(-1),
            report: serde_json::from_slice(&output.stdout).during(said)?,
        })
    }

    /// What another program does to the rules, in nft's words.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.lab.client.feed("timeout", &["20", "nft", "-f", "-"], script)
    }

    /// Runs a program in the machine that must succeed.
    pub fn run(&self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.lab.client.command(words[0], &words[1..]).map(drop)
    }

    /// Starts a program in the machine, and waits until it says a line.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Process> {
        Self::start_in(&self.lab.client, program, arguments)
    }

    /// The same in another machine.
    pub fn start_in(host: &Host, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = host.start(command)?;
        let out = process.child().stdout.take().ok_or_else(|| Error::new("no output"))?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).during(program)?;
        match line.is_empty() {
            true => Err(Error::new(format!("{program} {arguments:?} said nothing"))),
            false => Ok(process),
        }
    }
}

/// The whole of a test.
pub fn try_out(sabotage: &Sabotage) -> Outcome {
    let mut stage = Stage::set(sabotage.setting)?;
    let baseline = sabotage.setting.baseline();
    stage.audit("")?.must_find(baseline, "before the sabotage")?;
    let harm = (sabotage.act)(&mut stage)?;
    if harm.impossible {
        return Ok(());
    }
    let mut wanted = [baseline, sabotage.finder.findings()].concat();
    wanted.sort_unstable();
    wanted.dedup();
    stage.audit(&harm.mounts)?.must_find(&wanted, "after it")?;
    let Some(probes) = sabotage.finder.probes() else { return Ok(()) };
    let wanted = [sabotage.setting.leaks(), probes].concat();
    stage.leaktest(&harm.mounts)?.must_leak_by(&wanted, LEAKED, "after it")
}

/// The exit status of `leaktest`.
const LEAKED: i32 = 20;
