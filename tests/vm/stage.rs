//! A laboratory whose client is an emulated Debian machine, and what is known of it.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::advertisement::{Advertiser, RaOptions};
use killswitch::lab::dhcp::{DhcpOptions, DhcpServer};
use killswitch::lab::harness::Failed;
use killswitch::lab::wireguard::KeyPair;
use killswitch::lab::{Context, Error, Expectation, Lab, Report, Result};

use super::machine::{Machine, Start};
use super::payload;

/// A Debian release, and so a kernel.
pub type Suite = &'static str;

/// What configures the machine's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    Networkd,
    NetworkManager,
    Ifupdown,
}

/// How a machine is booted.
#[derive(Debug, Clone)]
pub struct Plan {
    pub manager: Manager,
    /// Whether the kill switch is installed and enabled: the positive control is without.
    pub guarded: bool,
    pub stock_initrd: bool,
    /// More of the kernel's command line.
    pub append: String,
}

impl Plan {
    pub fn guarded(manager: Manager) -> Self {
        Plan { manager, guarded: true, stock_initrd: false, append: String::new() }
    }

    /// The same machine without the kill switch.
    pub fn control(&self) -> Self {
        Plan { guarded: false, ..self.clone() }
    }

    /// The same with more of the kernel's command line.
    pub fn with(mut self, append: &str) -> Self {
        self.append = format!("{} {append}", self.append);
        self
    }

    fn command_line(&self) -> String {
        const INSTEAD: &str = "systemd.mask=systemd-networkd.service \
                               systemd.mask=systemd-networkd.socket systemd.wants=";
        let manager = match self.manager {
            Manager::Networkd => String::new(),
            Manager::NetworkManager => format!("{INSTEAD}NetworkManager.service"),
            Manager::Ifupdown => format!("{INSTEAD}networking.service"),
        };
        let guard = if self.guarded {
            ""
        } else {
            "systemd.mask=killswitch.service systemd.mask=killswitch-lock.service"
        };
        format!("{manager} {guard} {}", self.append)
    }
}

/// The positive control: the same machine without the lock, also after a reboot.
const LAY_OPEN: &str = "killswitch unlock --yes
    systemctl mask --now killswitch killswitch-lock
    ip link delete wg0 || :";

/// Nothing is still to be started. Not `is-system-running --wait`: an old one waits for ever.
const BOOTED: &str =
    "systemctl is-active multi-user.target && ! systemctl list-jobs | grep -q start";

/// The network around a machine, and the machine.
pub struct Stage {
    pub machine: Machine,
    /// Whether the kill switch is on in it.
    pub guarded: bool,
    pub lab: Lab,
    files: Files,
    leases: Option<DhcpServer>,
    router: Option<Advertiser>,
}

/// A network to plug the machine into: a LAN of the laboratory's router, and what it tells.
#[derive(Debug, Clone, Default)]
pub struct Network {
    pub leases: DhcpOptions,
    pub router: RaOptions,
}

impl Network {
    /// Another place: other addresses, other gateways.
    pub fn elsewhere() -> Self {
        Network {
            leases: DhcpOptions {
                link: OTHER_LAN_LINK,
                server: OTHER_ROUTER_V4,
                address: OTHER_CLIENT_V4,
                gateway: OTHER_ROUTER_V4,
                dns: OTHER_ROUTER_V4,
                ..DhcpOptions::default()
            },
            router: RaOptions {
                link: OTHER_LAN_LINK,
                prefixes: vec![Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0)],
                dns: None,
                ..RaOptions::default()
            },
        }
    }
}

/// A machine's directory. Its disk, which is large, goes; captures and consoles tell why a test
/// failed, and stay until the next run.
struct Files(PathBuf);

impl Files {
    fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.disk());
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
fn image(suite: Suite) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/vm").join(suite)
}

/// Keys for all machines of a run: their disks outlive a laboratory.
fn keys() -> &'static [KeyPair; 3] {
    static KEYS: OnceLock<[KeyPair; 3]> = OnceLock::new();
    KEYS.get_or_init(|| [(); 3].map(|()| KeyPair::generate().expect("keys")))
}

impl Stage {
    /// Boots a machine: everything is there that the plan says, from power-on.
    ///
    /// # Errors
    /// Why not.
    pub fn boot(suite: Suite, plan: &Plan) -> Result<Self> {
        Self::boot_with(suite, plan, |_| Ok(()))
    }

    /// As [`Stage::boot`], in a laboratory that is prepared before power-on.
    ///
    /// # Errors
    /// Why not.
    pub fn boot_with(
        suite: Suite,
        plan: &Plan,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Self> {
        let disk = installed(suite)?;
        Self::start(suite, &disk, plan, false, prepare)
    }

    /// A machine that has booted with networkd; guarded ones are connected. The same at every call.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(suite: Suite, guarded: bool) -> Result<Self> {
        let mut stage = Self::resume(suite, &saved(suite, guarded)?)?;
        stage.guarded = guarded;
        if guarded {
            // The servers have forgotten the session.
            stage.wait_until_connected()?;
        }
        Ok(stage)
    }

    fn resume(suite: Suite, disk: &Path) -> Result<Self> {
        Self::start(suite, disk, &Plan::guarded(Manager::Networkd), true, |_| Ok(()))
    }

    /// Keeps its state in `disk`, and ends it.
    fn save(mut self, disk: &Path) -> Result<()> {
        self.machine.save()?;
        std::fs::rename(self.files.disk(), disk).during(disk.display())
    }

    fn start(
        suite: Suite,
        disk: &Path,
        plan: &Plan,
        resume: bool,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = work().join(format!("{suite}-{number}"));
        std::fs::create_dir_all(&directory).during(directory.display())?;
        let files = Files(directory);
        std::fs::copy(disk, files.disk()).during(disk.display())?;
        let mut lab = Lab::new()?;
        let [client, first, second] = keys();
        lab.client_keys = client.clone();
        lab.servers[0].keys = first.clone();
        lab.servers[1].keys = second.clone();
        lab.start_server(0)?;
        lab.start_server(1)?;
        prepare(&lab)?;
        plug_in(&lab)?;
        let payload = work().join(format!("{suite}.tar"));
        let start = Start {
            image: image(suite),
            stock_initrd: plan.stock_initrd,
            disk: files.disk(),
            payload: payload.is_file().then_some(payload),
            append: plan.command_line(),
            resume,
        };
        let machine = Machine::start(&lab.client, &files.0, &start)?;
        let mut stage =
            Stage { machine, guarded: plan.guarded, lab, files, leases: None, router: None };
        stage.plug_into(&Network::default())?;
        Ok(stage)
    }

    /// From now on the other end of the cable is in this network. The machine is not told.
    ///
    /// # Errors
    /// The words of `ip`; those of sockets.
    pub fn plug_into(&mut self, network: &Network) -> Result<()> {
        // The old servers' sockets first.
        (self.leases, self.router) = (None, None);
        self.lab.router.ip(&format!("link set {WIRE} master {}", network.leases.link))?;
        self.leases = Some(DhcpServer::start(&self.lab.router, network.leases.clone())?);
        let interval = Duration::from_secs(3);
        let options = RaOptions { interval, ..network.router.clone() };
        self.router = Some(Advertiser::start(&self.lab.router, options)?);
        Ok(())
    }

    /// Until the daemon answers and says that it is connected, and an answer comes from the Internet;
    /// while the senders still try.
    ///
    /// # Errors
    /// What is in the way.
    pub fn wait_until_connected(&mut self) -> Result<Duration> {
        self.machine
            .wait_for(&format!(
                "systemctl is-active --quiet senders && killswitch exception list && \
                 killswitch status 2>&1 && ping -c1 -W2 -q {INTERNET_V4} && \
                 ping -c1 -W2 -q {INTERNET_V6}"
            ))
            .map_err(|error| {
                let look = "killswitch status; ip address; ip route; ip rule; wg; \
                            journalctl --no-pager -n 60 -u killswitch -u killswitch-lock";
                let more = self.machine.ask(look).map_or_else(|it| it.to_string(), |it| it.text);
                Error::new(format!("{error}\n{more}"))
            })
    }

    /// What it has sent since the last look.
    ///
    /// # Errors
    /// Those of the capture.
    pub fn sent(&mut self) -> Result<Report> {
        self.machine.sent(&Expectation::of(&self.lab))
    }

    /// Shuts it down, in order.
    ///
    /// # Errors
    /// If it stays on.
    pub fn power_off(&mut self) -> Result<()> {
        self.machine.begin("systemctl poweroff")?;
        self.machine.wait_for_power_off()
    }

    /// Fails if a frame has left that must not, since the last look.
    pub fn nothing_leaked(&mut self, during: &str) -> std::result::Result<(), Failed> {
        self.nothing_leaked_but(during, &[]).map(drop)
    }

    /// The same, but for frames of these kinds: how many there were.
    pub fn nothing_leaked_but(
        &mut self,
        during: &str,
        excused: &[&str],
    ) -> std::result::Result<u64, Failed> {
        let mut report = self.sent()?;
        let before = report.leaked_total();
        let known = |kind: &str| {
            !kind.contains("tunnel's own address") && excused.iter().any(|it| kind.contains(it))
        };
        report.leaked.retain(|kind, _| !known(kind));
        if report.leaked_total() == 0 {
            return Ok(before);
        }
        Err(format!(
            "{} frames leaked during {during}: {}\n{}",
            report.leaked_total(),
            report.summary(8),
            self.machine.last_words()
        )
        .into())
    }

    /// Fails unless a frame has left that must not, since the last look: how many did.
    pub fn leaked(&mut self, during: &str) -> std::result::Result<u64, Failed> {
        let report = self.sent()?;
        if report.leaked_total() > 0 {
            return Ok(report.leaked_total());
        }
        Err(format!("the control did not leak during {during}\n{}", self.machine.last_words())
            .into())
    }
}

/// The client's wire goes on to the machine's cable; the client itself says nothing.
fn plug_in(lab: &Lab) -> Result<()> {
    for setting in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
        lab.client.sysctl(setting, "1")?;
    }
    lab.client.ip(&format!(
        "address flush dev {CLIENT_LINK}
         link add cable type bridge forward_delay 0 mcast_snooping 0
         tuntap add tap0 mode tap
         link set {CLIENT_LINK} master cable up
         link set tap0 master cable up
         link set cable up"
    ))
}

/// A disk with the package, from Debian's own: made once in a run, inside the machine.
fn installed(suite: Suite) -> Result<PathBuf> {
    once(suite, "installed", |disk| {
        let payload = work().join(format!("{suite}.tar"));
        payload::write(&payload, keys(), work())?;
        let plain = work().join(format!("{suite}-plain.qcow2"));
        make_overlay(&image(suite).join("disk.raw"), &plain)?;
        // Nothing is to be sent, and nobody to be asked.
        let plan = Plan::guarded(Manager::Networkd).with("systemd.mask=senders.service");
        let mut stage = Stage::start(suite, &plain, &plan, false, |_| Ok(()))?;
        stage.machine.wait_for(BOOTED)?;
        stage.machine.run(payload::INSTALL)?;
        stage.power_off()?;
        std::fs::rename(stage.files.disk(), disk).during(disk.display())
    })
}

/// Booted, connected, and silent from power-on to there; or the same machine laid open.
fn saved(suite: Suite, guarded: bool) -> Result<PathBuf> {
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
        let plan = Plan::guarded(Manager::Networkd);
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
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([base, disk])
        .output()
        .during("qemu-img")?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr))))
}
