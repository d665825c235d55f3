//! One emulated machine: its power, its cable, its console, and every frame that it sends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use killswitch::lab::capture::judge_file;
use killswitch::lab::host::Process;
use killswitch::lab::{Context, Error, Expectation, Host, Report, Result};
use serde_json::json;

use super::console::{Answer, Shell};
use super::monitor::Monitor;

/// For anything that a machine does: it is emulated, and the one that emulates it is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The machine's hardware address.
const ADDRESS: &str = "02:00:00:00:00:50";
/// The state that [`Machine::save`] keeps in the disk.
const SAVED: &str = "saved";

/// How to start a machine.
#[derive(Debug, Clone)]
pub struct Start {
    /// Where its kernel and initrd are.
    pub image: PathBuf,
    /// Debian's own initrd, not the small one.
    pub stock_initrd: bool,
    /// A qcow2 file, which it changes.
    pub disk: PathBuf,
    /// Another one, at /dev/vdc.
    pub swap: Option<PathBuf>,
    /// A tar file that it finds at /dev/vdb.
    pub payload: Option<PathBuf>,
    /// More of the kernel's command line.
    pub append: String,
    /// Go on where [`Machine::save`] was, instead of booting.
    pub resume: bool,
}

/// A running machine; its power is cut when dropped.
pub struct Machine {
    process: Process,
    directory: PathBuf,
    console: PathBuf,
    monitor: Monitor,
    shell: Option<Shell>,
    /// Its shell has yet to start, and will prompt.
    booting: bool,
    judged: usize,
}

impl Machine {
    /// Switches it on, at link `tap0` of `host`. `directory` is for its files.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn start(host: &Host, directory: &Path, start: &Start) -> Result<Self> {
        std::fs::create_dir_all(directory).during(directory.display())?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments(directory, start)).stdin(Stdio::null());
        let log = std::fs::File::create(directory.join("qemu.log")).during("qemu.log")?;
        command.stderr(log);
        let process = host.start(command)?;
        let monitor = Monitor::connect(&directory.join("monitor")).map_err(|error| {
            let words = std::fs::read_to_string(directory.join("qemu.log")).unwrap_or_default();
            Error::new(format!("{error}\n{words}"))
        })?;
        Ok(Machine {
            process,
            console: directory.join("console"),
            directory: directory.into(),
            monitor,
            shell: None,
            booting: !start.resume,
            judged: 0,
        })
    }

    /// Runs a script as root, and waits for it.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub fn ask(&mut self, script: &str) -> Result<Answer> {
        let answered = self.try_ask(script, PATIENCE);
        answered.map_err(|error| Error::new(format!("{error}\n{}", self.last_words())))
    }

    /// As [`Machine::ask`], and it must succeed.
    ///
    /// # Errors
    /// Its words.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let answer = self.ask(script)?;
        if answer.status == 0 {
            return Ok(answer.text);
        }
        Err(Error::new(format!("`{script}` ended with {}: {}", answer.status, answer.text)))
    }

    /// Asks until it succeeds; how long it took.
    ///
    /// # Errors
    /// What it said last.
    pub fn wait_for(&mut self, script: &str) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let answer = self.ask(script)?;
            if answer.status == 0 {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::new(format!(
                    "waited in vain for `{script}`: {}\n{}",
                    answer.text,
                    self.last_words()
                )));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Begins something that the machine may not survive.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn begin(&mut self, script: &str) -> Result<()> {
        self.run(&format!("setsid sh -c {} >/dev/null 2>&1 &", quoted(script))).map(drop)
    }

    /// Begins what ends in another boot, and waits until that has come up.
    ///
    /// # Errors
    /// If it does not.
    pub fn reboot_by(&mut self, begin: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        /// When the boot's first process began: /run, the journal, the boot's id may survive.
        const BOOT: &str = "systemctl show --value --property=UserspaceTimestamp";
        let before = self.run(BOOT)?;
        begin(self)?;
        (self.shell, self.booting) = (None, true);
        let another = format!("now=$({BOOT}) && [ \"$now\" != '{}' ]", before.trim());
        self.wait_for_another_shell(&another)?;
        self.wait_for("systemctl is-active multi-user.target").map(drop)
    }

    /// As [`Machine::wait_for`], while the shell goes without a word and another one comes.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for_another_shell(&mut self, script: &str) -> Result<()> {
        const SHORT: Duration = Duration::from_secs(10);
        let start = Instant::now();
        while start.elapsed() < PATIENCE * 2 {
            // Of a boot, silently; then it is asked again and again.
            let patience = if self.booting { PATIENCE } else { SHORT };
            self.shell = None;
            if self.try_ask(script, patience).is_ok_and(|answer| answer.status == 0) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Err(Error::new(format!("waited in vain for `{script}`\n{}", self.last_words())))
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// If it has not, with its last words.
    pub fn wait_for_power_off(&mut self) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.process.child().try_wait().during("waiting for QEMU")?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let look = "systemctl list-jobs; journalctl --no-pager -n 30";
        let said = self.ask(look).map_or_else(|error| error.to_string(), |answer| answer.text);
        Err(Error::new(format!("the machine is still on\n{said}\n{}", self.last_words())))
    }

    /// Pulls the cable out, or plugs it in.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn cable(&mut self, plugged: bool) -> Result<()> {
        self.monitor.execute("set_link", &json!({ "name": "n0", "up": plugged })).map(drop)
    }

    /// A command of QEMU's machine protocol without arguments, e.g. `system_wakeup`.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn press(&mut self, button: &str) -> Result<()> {
        self.monitor.execute(button, &json!({})).map(drop)
    }

    /// Waits for an event of QEMU, e.g. `SUSPEND`.
    ///
    /// # Errors
    /// If it does not come.
    pub fn wait_for_event(&mut self, event: &str) -> Result<()> {
        let waited = self.monitor.wait_for(event);
        waited.map_err(|error| Error::new(format!("{error}\n{}", self.last_words())))
    }

    /// Keeps its whole state in its disk, and switches it off: [`Start::resume`] goes on from there.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn save(&mut self) -> Result<()> {
        let words = json!({ "command-line": format!("savevm {SAVED}") });
        let said = self.monitor.execute("human-monitor-command", &words)?;
        if said.as_str().is_none_or(|text| !text.trim().is_empty()) {
            return Err(Error::new(format!("savevm: {said}")));
        }
        self.monitor.execute("quit", &json!({}))?;
        self.wait_for_power_off()
    }

    /// Judges what the machine has sent since the last call, or since power-on.
    ///
    /// # Errors
    /// Those of the capture file.
    pub fn sent(&mut self, expected: &Expectation) -> Result<Report> {
        let (report, judged) =
            judge_file(&self.directory.join("sent.pcap"), self.judged, expected)?;
        self.judged = judged;
        Ok(report)
    }

    /// The console's last lines.
    pub fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        format!("the console:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    }

    fn try_ask(&mut self, script: &str, patience: Duration) -> Result<Answer> {
        if self.shell.is_none() {
            let first = std::mem::take(&mut self.booting);
            self.shell = Some(Shell::open(&self.directory.join("shell"), first, patience)?);
        }
        let shell = self.shell.as_mut().ok_or_else(|| Error::new("no shell"))?;
        shell.ask(script, patience)
    }
}

/// For `sh -c`.
fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}

fn arguments(directory: &Path, start: &Start) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    let image = |name: &str| start.image.join(name).display().to_string();
    let initrd = if start.stock_initrd { "initrd" } else { "initrd.small" };
    let mut words: Vec<String> = [
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi,tb-size=512",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "768",
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
    ]
    .map(String::from)
    .into();
    let mut option = |name: &str, value: String| words.extend([name.into(), value]);
    option("-kernel", image("vmlinuz"));
    option("-initrd", image(initrd));
    option(
        "-append",
        format!(
            "root=/dev/vda rw console=ttyS0 quiet mitigations=off net.ifnames=0 \
             systemd.debug_shell=ttyS1 systemd.show_status=no {}",
            start.append
        ),
    );
    option("-drive", format!("file={},format=qcow2,if=virtio,cache=unsafe", start.disk.display()));
    if let Some(payload) = &start.payload {
        option("-drive", format!("file={},format=raw,if=virtio,readonly=on", payload.display()));
    }
    if let Some(swap) = &start.swap {
        option("-drive", format!("file={},format=raw,if=virtio,cache=unsafe", swap.display()));
    }
    option("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no,vnet_hdr=off".into());
    option("-device", format!("virtio-net-pci,netdev=n0,mac={ADDRESS},romfile="));
    // rx: what the machine hands to the network, and nothing else.
    option("-object", format!("filter-dump,id=f,netdev=n0,queue=rx,file={}", at("sent.pcap")));
    option("-serial", format!("file:{}", at("console")));
    option("-serial", format!("unix:{},server=on,wait=off", at("shell")));
    option("-qmp", format!("unix:{},server=on,wait=off", at("monitor")));
    if start.resume {
        option("-loadvm", SAVED.into());
    }
    words
}
