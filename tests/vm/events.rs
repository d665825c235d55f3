//! What happens to a machine that runs: the same events befall one without the kill switch, whose
//! senders are heard, and one with it, which must be silent and connected again without a human.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::dhcp::DhcpOptions;
use killswitch::lab::harness::{Failed, Outcome};
use killswitch::lab::{Error, Result};

use super::record::{self, Seen};
use super::stage::{Network, Stage, Suite};

/// Something that happens, and is over when `happen` returns.
pub struct Event {
    pub name: &'static str,
    happen: fn(&mut Stage) -> Result<()>,
    /// Where it cannot happen, and why.
    not_on: &'static [(Suite, &'static str)],
    /// What may leave nevertheless, where the kernel lacks a layer: a part of the frame's kind.
    excused: &'static [(Suite, &'static str)],
}

impl Event {
    const fn new(name: &'static str, happen: fn(&mut Stage) -> Result<()>) -> Self {
        Event { name, happen, not_on: &[], excused: &[] }
    }
}

/// Seen at every change of the code; the others when all are asked for.
pub const ALWAYS: [&str; 8] = [
    "cable_out_and_in",
    "suspend_and_resume",
    "server_dies",
    "daemon_killed",
    "unit_stopped_and_started",
    "ruleset_flushed",
    "ruleset_flushed_while_no_daemon_runs",
    "reboot",
];

/// 6.1 lets no table outlive its owner, so anybody may flush it; the routing guard then holds alone,
/// and it sees neither packet sockets nor multicast (SECURITY.md, limits; threats 21 to 24).
const GUARD_ALONE: &[(Suite, &str)] = &[
    ("bookworm", "192.0.2.1 -> 1.1.1.1:4000"),
    ("bookworm", "ethertype 0x88b5"),
    ("bookworm", "-> 224.0.0."),
    ("bookworm", "-> [ff02::fb]:5353"),
    ("bookworm", "-> ff02::"),
];

/// nft/lock.nft, since the program could not lock.
const LOCKED_BY_THE_STATIC_RULES: &str = "systemctl is-failed killswitch-lock
    nft list table inet killswitch | grep drop";

const UNPACK: &str = "mkdir -p /run/payload && tar xf /dev/vdb -C /run/payload";

pub const EVENTS: &[Event] = &[
    Event::new("cable_out_and_in", cable_out_and_in),
    Event::new("network_left_and_back", |stage| {
        move_to(stage, &Network::elsewhere())?;
        settle(stage)?;
        move_to(stage, &Network::default())
    }),
    Event::new("lease_renewed", |stage| {
        // A renewal counts from its whole length again.
        script(
            stage,
            "left() { ip -4 -o address show dev eth0 | sed -n 's/.*valid_lft \\([0-9]*\\)sec.*/\\1/p'; }
             sleep 3; old=$(left); networkctl renew eth0
             for i in $(seq 100); do [ \"$(left)\" -gt \"$old\" ] && exit 0; sleep 0.3; done; exit 1",
        )
    }),
    Event::new("dhcp_with_hostile_routes", hostile_routes),
    Event::new("dhcp_with_hostile_resolver_and_mtu", hostile_resolver),
    Event::new("router_advertises_hostile_routes", hostile_router),
    Event::new("suspend_and_resume", |stage| suspend(stage, |_| Ok(()))),
    Event::new("suspend_and_resume_elsewhere", |stage| {
        suspend(stage, |stage| {
            stage.machine.cable(false)?;
            stage.plug_into(&Network::elsewhere())
        })?;
        sleep(Duration::from_secs(1));
        stage.machine.cable(true)?;
        settle(stage)?;
        move_to(stage, &Network::default())
    }),
    Event::new("server_dies", |stage| {
        if stage.guarded {
            stage.machine.wait_for(
                "killswitch connect server1; killswitch status | grep '^server  *server1'",
            )?;
        }
        stage.lab.servers[0].silence()?;
        if stage.guarded {
            stage.machine.wait_for("killswitch status | grep '^server  *server2'")?;
        }
        settle(stage)?;
        stage.lab.servers[0].end_silence()
    }),
    Event::new("clock_set_back_a_year_and_forth", |stage| {
        script(stage, "date -s '-1 year' && sleep 5 && date -s '+1 year'")
    }),
    Event::new("daemon_killed", |stage| {
        another_daemon(stage, "systemctl kill --signal=KILL killswitch")
    }),
    Event::new("daemon_stopped_by_a_signal", |stage| {
        // A lock that gets no answer kills what hangs.
        another_daemon(stage, "kill -STOP $old; sleep 3; killswitch lock")
    }),
    Event::new("daemon_out_of_memory", |stage| {
        another_daemon(
            stage,
            "systemctl set-property --runtime killswitch.service MemoryMax=256K
             for i in $(seq 60); do journalctl -k | grep -qi 'memory.*killswitch' && break; sleep 1; done
             journalctl -k | grep -i 'memory.*killswitch'
             systemctl set-property --runtime killswitch.service MemoryMax=infinity
             systemctl start killswitch",
        )
    }),
    Event::new("unit_stopped_and_started", |stage| {
        another_daemon(
            stage,
            "systemctl stop killswitch; ! systemctl is-active killswitch || exit 1; sleep 3
             systemctl start killswitch",
        )
    }),
    Event::new("unit_restarted", |stage| another_daemon(stage, "systemctl restart killswitch")),
    Event {
        excused: GUARD_ALONE,
        ..Event::new("ruleset_flushed", |stage| script(stage, "nft flush ruleset"))
    },
    Event {
        excused: GUARD_ALONE,
        ..Event::new("ruleset_flushed_while_no_daemon_runs", |stage| {
            another_daemon(
                stage,
                "systemctl stop killswitch; sleep 1; nft flush ruleset; sleep 3
                 systemctl start killswitch",
            )
        })
    },
    Event {
        excused: GUARD_ALONE,
        ..Event::new("nftables_service_started_and_stopped", |stage| {
            script(stage, "set -e; systemctl start nftables; sleep 1; systemctl stop nftables")
        })
    },
    Event {
        excused: GUARD_ALONE,
        ..Event::new("firewalld_started_reloaded_stopped", |stage| {
            script(
                stage,
                "set -e; systemctl start firewalld; firewall-cmd --reload; sleep 1
                 systemctl stop firewalld",
            )
        })
    },
    Event::new("ufw_enabled_reloaded_disabled", |stage| {
        script(stage, "set -e; ufw --force enable; ufw reload; sleep 1; ufw --force disable")
    }),
    Event::new("disk_full", |stage| {
        script(
            stage,
            "dd if=/dev/zero of=/var/full bs=1M 2>/dev/null
             if echo x >/var/more; then exit 1; fi
             ! systemctl is-enabled killswitch || systemctl restart killswitch || exit 1
             sleep 2; rm /var/full",
        )
    }),
    Event::new("rescue_and_back", |stage| isolate(stage, "rescue.target")),
    Event::new("emergency_and_back", |stage| isolate(stage, "emergency.target")),
    Event {
        not_on: &[("bookworm", "systemd 252 has no soft-reboot")],
        ..Event::new("soft_reboot", |stage| {
            stage.machine.reboot_by(|machine| machine.begin("systemctl soft-reboot"))
        })
    },
    Event::new("reboot", |stage| {
        stage.machine.reboot_by(|machine| machine.begin("systemctl reboot"))
    }),
    Event::new("boot_with_a_broken_configuration", |stage| {
        boot_with(
            stage,
            &Trouble {
                prepare: "cp -p /etc/killswitch.toml /root/; echo 'nonsense = [' >>/etc/killswitch.toml",
                // Where the administrator looks, and what says what is wrong and where.
                look: "systemctl is-failed killswitch-lock
                       systemctl status --no-pager --full killswitch-lock | grep killswitch.toml:
                       killswitch status 2>&1 | grep killswitch.toml:
                       ! killswitch status",
                repair: "cp -p /root/killswitch.toml /etc/; systemctl restart killswitch",
            },
        )
    }),
    Event::new("boot_without_the_program", |stage| {
        boot_with(
            stage,
            &Trouble {
                prepare: "mv /usr/bin/killswitch /root/",
                look: LOCKED_BY_THE_STATIC_RULES,
                // systemd goes on trying.
                repair: "mv /root/killswitch /usr/bin/",
            },
        )
    }),
    Event::new("boot_with_a_program_that_cannot_be_run", |stage| {
        boot_with(
            stage,
            &Trouble {
                prepare: "chmod -x /usr/bin/killswitch",
                look: LOCKED_BY_THE_STATIC_RULES,
                repair: "chmod +x /usr/bin/killswitch",
            },
        )
    }),
    Event::new("boot_with_a_full_disk", |stage| {
        boot_with(
            stage,
            &Trouble {
                prepare: "dd if=/dev/zero of=/var/full bs=1M 2>/dev/null; sync",
                look: "! sh -c 'echo x >/var/more'
                       killswitch status",
                repair: "rm /var/full",
            },
        )
    }),
    Event::new("package_upgraded", |stage| {
        script(stage, &format!("{UNPACK}; dpkg --install /run/payload/killswitch.deb"))
    }),
    Event::new("package_upgrade_killed", |stage| {
        script(
            stage,
            &format!(
                "{UNPACK}
                 for delay in 0.3 1 2; do
                     setsid dpkg --install /run/payload/killswitch.deb & sleep $delay
                     kill -9 -$! && killed=yes
                     sleep 1
                 done
                 [ \"$killed\" ] || exit 1
                 dpkg --configure --pending
                 dpkg --install /run/payload/killswitch.deb"
            ),
        )
    }),
    Event::new("package_removal_refused", |stage| {
        let answer = stage.machine.ask("apt-get --yes remove killswitch")?;
        // An open machine lets it go; a locked one says why not.
        let refused = answer.status != 0 && answer.text.contains("KILLSWITCH_REMOVE=keep-locked");
        match if stage.guarded { refused } else { answer.status == 0 } {
            true => Ok(()),
            false => Err(Error::new(format!("apt-get remove: {}", answer.text))),
        }
    }),
    Event::new("kexec", |stage| {
        script(
            stage,
            "kexec --load /boot/vmlinuz-$(uname -r) --initrd=/boot/initrd.img-$(uname -r) \
             --command-line=\"$(cat /proc/cmdline) kexeced\"",
        )?;
        stage.machine.reboot_by(|machine| machine.begin("systemctl kexec"))?;
        script(stage, "grep kexeced /proc/cmdline")
    }),
];

/// Without the kill switch, then with it.
pub fn befall(event: &Event, suite: Suite) -> Outcome {
    if let Some((_, why)) = event.not_on.iter().find(|(one, _)| *one == suite) {
        record::write(suite, event.name, &Seen::Impossible(why))?;
        return Ok(());
    }
    record::forget(suite, event.name)?;
    let control = with_machine(suite, false, |stage| {
        stage.sent()?;
        (event.happen)(stage)?;
        sleep(Duration::from_secs(1));
        stage.leaked(event.name)
    })?;
    let excused: Vec<&str> =
        event.excused.iter().filter(|(one, _)| *one == suite).map(|(_, what)| *what).collect();
    let (excused, back) = with_machine(suite, true, |stage| {
        stage.nothing_leaked("what came before")?;
        (event.happen)(stage)?;
        let back = stage.wait_until_connected()?;
        let excused = stage.nothing_leaked_but(event.name, &excused)?;
        sleep(Duration::from_secs(1));
        stage.nothing_leaked("what came after it")?;
        Ok((excused, back))
    })?;
    record::write(suite, event.name, &Seen::Held { control, excused, back })?;
    Ok(())
}

static MACHINES: Mutex<BTreeMap<(Suite, bool), Stage>> = Mutex::new(BTreeMap::new());

/// Cuts the power of those that [`befall`] has left running.
pub fn switch_off() {
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Prints what a script prints in the machine with the kill switch.
pub fn try_out(suite: Suite, script: &str) -> Outcome {
    with_machine(suite, true, |stage| {
        println!("{}", stage.machine.ask(script)?.text);
        Ok(())
    })
}

/// One machine for many events: booting takes longer than most of them. A failed one is not reused.
fn with_machine<T>(
    suite: Suite,
    guarded: bool,
    work: impl FnOnce(&mut Stage) -> std::result::Result<T, Failed>,
) -> std::result::Result<T, Failed> {
    let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    // Only this release's: memory is finite.
    machines.retain(|(one, _), _| *one == suite);
    let mut stage = match machines.remove(&(suite, guarded)) {
        Some(stage) => stage,
        None => Stage::ready(suite, guarded)?,
    };
    stage.machine.press("cont")?;
    let done = work(&mut stage)?;
    // The other one is to have the processors.
    stage.machine.press("stop")?;
    machines.insert((suite, guarded), stage);
    Ok(done)
}

fn script(stage: &mut Stage, script: &str) -> Result<()> {
    stage.machine.run(script).map(drop)
}

/// What ends the daemon (`$old`) and leads to another one.
fn another_daemon(stage: &mut Stage, what: &str) -> Result<()> {
    if !stage.guarded {
        sleep(Duration::from_secs(3));
        return Ok(());
    }
    script(
        stage,
        &format!(
            "set -e
             daemon() {{ systemctl show --value --property=MainPID killswitch; }}
             old=$(daemon); [ $old != 0 ]
             {what}
             for i in $(seq 300); do
                 new=$(daemon); [ $new = 0 ] || [ $new = $old ] || exit 0
                 sleep 0.2
             done
             exit 1"
        ),
    )
}

/// Connected, where there is something to connect.
fn settle(stage: &mut Stage) -> Result<()> {
    if stage.guarded {
        return stage.wait_until_connected().map(drop);
    }
    sleep(Duration::from_secs(3));
    Ok(())
}

const NO_CARRIER: &str = "! ip link show dev eth0 | grep LOWER_UP";

fn cable_out_and_in(stage: &mut Stage) -> Result<()> {
    stage.machine.cable(false)?;
    stage.machine.wait_for(NO_CARRIER)?;
    sleep(Duration::from_secs(1));
    stage.machine.cable(true)?;
    stage.machine.wait_for("ip -4 address show dev eth0 | grep -q inet").map(drop)
}

fn move_to(stage: &mut Stage, network: &Network) -> Result<()> {
    stage.machine.cable(false)?;
    stage.plug_into(network)?;
    stage.machine.wait_for(NO_CARRIER)?;
    stage.machine.cable(true)?;
    let address = network.leases.address;
    stage.machine.wait_for(&format!("ip -4 address show dev eth0 | grep -q {address}")).map(drop)
}

/// TunnelVision (CVE-2024-3661), to the whole Internet and to one address.
fn hostile_routes(stage: &mut Stage) -> Result<()> {
    let [half, other] = [[0, 0, 0, 0], [128, 0, 0, 0]].map(std::net::Ipv4Addr::from);
    let one = std::net::Ipv4Addr::new(1, 1, 1, 1);
    let routes = vec![(half, 1, ROUTER_V4), (other, 1, ROUTER_V4), (one, 32, ROUTER_V4)];
    let leases = DhcpOptions { routes, ..DhcpOptions::default() };
    visit(stage, &Network { leases, ..Network::default() }, "ip route | grep -q '1.1.1.1 via'")
}

fn hostile_resolver(stage: &mut Stage) -> Result<()> {
    let dns = std::net::Ipv4Addr::new(8, 8, 8, 8);
    let leases = DhcpOptions { dns, mtu: Some(576), ..DhcpOptions::default() };
    visit(stage, &Network { leases, ..Network::default() }, "resolvectl dns eth0 | grep -q 8.8.8.8")
}

fn hostile_router(stage: &mut Stage) -> Result<()> {
    let router = killswitch::lab::advertisement::RaOptions {
        routes: vec![("2606:4700:4700::1111".parse().unwrap_or(INTERNET_V6), 128)],
        dns: Some(INTERNET_V6),
        ..Network::default().router
    };
    let proof = "ip -6 route | grep -q '^2606:4700:4700::1111'";
    visit(stage, &Network { router, ..Network::default() }, proof)
}

/// Is in a network until it has believed it, and goes home.
fn visit(stage: &mut Stage, network: &Network, believed: &str) -> Result<()> {
    move_to(stage, network)?;
    stage.machine.wait_for(believed)?;
    settle(stage)?;
    move_to(stage, &Network::default())
}

/// S3: memory stays on, all else is off.
fn suspend(stage: &mut Stage, meanwhile: fn(&mut Stage) -> Result<()>) -> Result<()> {
    stage.machine.begin("systemctl suspend")?;
    stage.machine.wait_for_event("SUSPEND")?;
    meanwhile(stage)?;
    sleep(Duration::from_secs(3));
    stage.machine.press("system_wakeup")?;
    stage.machine.wait_for_event("WAKEUP")
}

fn isolate(stage: &mut Stage, target: &str) -> Result<()> {
    stage.machine.begin(&format!("systemctl isolate {target}"))?;
    stage.machine.wait_for(&format!("systemctl is-active {target}"))?;
    sleep(Duration::from_secs(3));
    stage.machine.begin("systemctl default")?;
    stage.machine.wait_for("systemctl is-active multi-user.target").map(drop)
}

/// Boots with something broken, and repairs it.
struct Trouble {
    prepare: &'static str,
    /// What the administrator finds at the console, line for line; with the kill switch only.
    look: &'static str,
    repair: &'static str,
}

fn boot_with(stage: &mut Stage, trouble: &Trouble) -> Result<()> {
    script(stage, trouble.prepare)?;
    stage.machine.reboot_by(|machine| machine.begin("systemctl reboot"))?;
    if stage.guarded {
        for line in trouble.look.lines() {
            stage.machine.wait_for(line.trim())?;
        }
    }
    sleep(Duration::from_secs(2));
    // What is masked cannot be started.
    script(stage, &format!("{{ {}; }} || :", trouble.repair))
}
