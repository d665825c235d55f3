//! Disks that many machines use, each made once in a run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use killswitch::lab::addresses::INTERNET_V4;
use killswitch::lab::wireguard::KeyPair;
use killswitch::lab::{Context, Error, Result};

use super::payload;
use super::plan::{Configurator, Plan, Suite};
use super::stage::Stage;

/// The positive control: the same machine without the lock, also after a reboot.
const LAY_OPEN: &str = "killswitch unlock --yes
    systemctl mask --now killswitch killswitch-lock
    ip link delete wg0 || :";

/// Nothing is still to be started. Not `is-system-running --wait`: an old one waits for ever.
const BOOTED: &str =
    "systemctl is-active multi-user.target && ! systemctl list-jobs | grep -q start";

/// A machine's directory. Its disks, which are large, go; captures and consoles tell why a test
/// failed, and stay until the next run.
pub struct Files(PathBuf);

impl Files {
    /// Makes it.
    ///
    /// # Errors
    /// Those of files.
    pub fn new(name: &str) -> Result<Self> {
        let directory = work().join(name);
        std::fs::create_dir_all(&directory).during(directory.display())?;
        Ok(Files(directory))
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// Swap space that a machine's memory fits into: the initrd looks for it, and tells the kernel.
    ///
    /// # Errors
    /// Those of files; the words of `mkswap`.
    pub fn swap(&self) -> Result<PathBuf> {
        let path = self.0.join("swap");
        let file = std::fs::File::create(&path).during(path.display())?;
        file.set_len(1 << 30).during(path.display())?;
        succeed(Command::new("mkswap").arg(&path))?;
        Ok(path)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for disk in ["disk", "swap"] {
            let _ = std::fs::remove_file(self.0.join(disk));
        }
    }
}

/// The directory for a run's files: disks, captures, consoles.
pub fn work() -> &'static Path {
    static WORK: OnceLock<PathBuf> = OnceLock::new();
    WORK.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        directory
    })
}

/// Where `tests/vm/image` puts them.
pub fn image(suite: Suite) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/vm").join(suite)
}

/// What a machine finds at /dev/vdb, once [`installed`] has made it.
pub fn payload(suite: Suite) -> PathBuf {
    work().join(format!("{suite}.tar"))
}

/// Keys for all machines of a run: their disks outlive a laboratory.
pub fn keys() -> &'static [KeyPair; 3] {
    static KEYS: OnceLock<[KeyPair; 3]> = OnceLock::new();
    KEYS.get_or_init(|| [(); 3].map(|()| KeyPair::generate().expect("keys")))
}

/// A disk with the package, from Debian's own: made once in a run, inside the machine.
///
/// # Errors
/// Why not.
pub fn installed(suite: Suite) -> Result<PathBuf> {
    once(suite, "installed", |disk| {
        payload::write(&payload(suite), keys(), work())?;
        let plain = work().join(format!("{suite}-plain.qcow2"));
        make_overlay(&image(suite).join("disk.raw"), &plain)?;
        // Nothing is to be sent, and nobody to be asked.
        let plan = Plan::guarded(Configurator::Networkd).with("systemd.mask=senders.service");
        let mut stage = Stage::start(suite, &plain, &plan, false, |_| Ok(()))?;
        stage.machine.wait_for(BOOTED)?;
        stage.machine.run(&payload::install())?;
        stage.power_off()?;
        stage.keep_disk(disk)
    })
}

/// Booted, connected, and silent from power-on to there; or the same machine laid open.
///
/// # Errors
/// Why not.
pub fn saved(suite: Suite, guarded: bool) -> Result<PathBuf> {
    if !guarded {
        let from = saved(suite, true)?;
        return once(suite, "open", |disk| {
            let mut stage = Stage::resume(suite, &from)?;
            stage.machine.run(LAY_OPEN)?;
            stage.machine.wait_for(&format!("ping -c1 -W2 -q {INTERNET_V4}"))?;
            stage.save(disk)
        });
    }
    let from = installed(suite)?;
    once(suite, "guarded", |disk| {
        let plan = Plan::guarded(Configurator::Networkd);
        let mut stage = Stage::start(suite, &from, &plan, false, |_| Ok(()))?;
        stage.wait_until_connected()?;
        stage.machine.wait_for(BOOTED)?;
        let report = stage.sent()?;
        if report.leaked_total() > 0 {
            return Err(Error::new(format!("leaked at boot: {}", report.summary(8))));
        }
        stage.save(disk)
    })
}

/// Makes a disk that several tests use, when the first of them asks.
fn once(suite: Suite, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = work().join(format!("{suite}-{name}.qcow2"));
    if !disk.exists() {
        make(&disk)?;
    }
    Ok(disk)
}

fn make_overlay(base: &Path, disk: &Path) -> Result<()> {
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    qemu_img(&options, &[base.as_os_str(), disk.as_os_str()])
}

fn qemu_img(options: &[&str], operands: &[&OsStr]) -> Result<()> {
    succeed(Command::new("qemu-img").args(options).args(operands))
}

/// Runs it.
///
/// # Errors
/// Its words.
pub fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().during(format!("{command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}
