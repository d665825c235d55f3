//! What happens to a machine that runs: the same events befall one without the kill switch, whose
//! senders are heard, and one with it, which must be silent and connected again without a human.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use killswitch::lab::harness::{Failed, Outcome};
use killswitch::lab::{Error, Result};

use super::actions::*;
use super::networks::Network;
use super::payload::UNPACK;
use super::plan::Suite;
use super::record::{self, Seen};
use super::stage::Stage;
use super::ways::{self, Excused, WHERE_ANYBODY_MAY_FLUSH, Way};

/// Something that happens, and is over when `happen` returns.
pub struct Event {
    pub name: &'static str,
    happen: fn(&mut Stage) -> Result<()>,
    /// Where it cannot happen, and why.
    not_on: &'static [(Suite, &'static str)],
    /// What may leave nevertheless, where a layer is missing.
    excused: Excused,
    /// Ways besides the senders' by which the machine without the kill switch must leak.
    ways: &'static [Way],
}

impl Event {
    const fn new(name: &'static str, happen: fn(&mut Stage) -> Result<()>) -> Self {
        Event { name, happen, not_on: &[], excused: &[], ways: &[] }
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

/// No kernel has tables without nf_tables.
const WITHOUT_TABLES: Excused =
    &[("bookworm", ways::GUARD_ALONE), ("trixie", ways::GUARD_ALONE), ("sid", ways::GUARD_ALONE)];

/// It is installed in the version of [`payload::OLDER`].
const IS_OLDER: &str = "dpkg-query -W -f '${Version}' killswitch | grep -qx 0.0.1";

/// nft/lock.nft, since the program could not lock.
const LOCKED_BY_THE_STATIC_RULES: &str = "systemctl is-failed killswitch-lock
    nft list table inet killswitch | grep drop";

/// On 6.1 the honest test finds what is known: where nobody owns the tables, their flush lets out what
/// the routing guard alone does not stop.
const LEAKTEST: &str = "case $(uname -r) in
    6.1.*) killswitch leaktest ;;
    *) killswitch leaktest --disrupt --yes --down-time 3s ;;
    esac";

/// Until nothing more can be written: what had been set aside for what was yet to be written may turn
/// out not to be needed.
const FILL_THE_DISK: &str = "i=0
    while echo x >/var/more.$i; do
        i=$((i + 1)); [ $i -lt 100 ] || exit 1
        cat /dev/zero >/var/full.$i; sync
    done 2>/dev/null";

/// The senders hold packet sockets: a machine that has them is not clean.
const AUDIT: &str = "systemctl stop senders; pkill -KILL -f sbin/senders
    killswitch audit; audit=$?
    systemctl start senders; [ $audit = 0 ]";

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
    Event::new("dhcp_with_hostile_routes", |stage| {
        visit(stage, &Network::with_hostile_routes(), "ip route | grep -q '1.1.1.1 via'")
    }),
    Event::new("dhcp_with_hostile_resolver_and_mtu", |stage| {
        // Whoever believes it: networkd does not by default. With IPv6 it goes no lower than 1280.
        script(
            stage,
            "set -e; there=/run/systemd/network/50-wired.network.d; mkdir -p $there
             printf '[DHCPv4]\\nUseMTU=yes\\n' >$there/mtu.conf; networkctl reload",
        )?;
        let believed = "resolvectl dns eth0 | grep -q 8.8.8.8 &&
                        ip link show eth0 | grep -E 'mtu (576|1280)'";
        visit(stage, &Network::with_hostile_resolver(), believed)?;
        // With a lease that changed the MTU, networkd overlooks that the cable was out for a few
        // seconds (link_carrier_lost()): it is still the other network's.
        script(
            stage,
            "set -e; rm -r /run/systemd/network/50-wired.network.d
             networkctl reload; ip link set dev eth0 mtu 1500",
        )?;
        stage.machine.wait_for("! resolvectl dns eth0 | grep 8.8.8.8").map(drop)
    }),
    Event::new("router_advertises_hostile_routes", |stage| {
        let believed = "ip -6 route | grep -q '^2606:4700:4700::1111'";
        visit(stage, &Network::with_hostile_router(), believed)
    }),
    Event::new("lan_claims_public_addresses", visit_a_lan_of_public_addresses),
    Event::new("suspend_and_resume", |stage| suspend(stage, None)),
    Event::new("suspend_and_resume_elsewhere", |stage| {
        suspend(stage, Some(&Network::elsewhere()))?;
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
    Event::new("wireguard_renamed", |stage| {
        if !stage.guarded {
            return Ok(());
        }
        // Before 6.2 the kernel renames no link that is up, and the daemon sets it up again.
        script(
            stage,
            "for i in $(seq 100); do ip link set wg0 down; ip link set wg0 name wg9 && exit 0; done
             exit 1",
        )?;
        stage.machine.wait_for("ip link show wg0 && ! ip link show wg9").map(drop)
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
    Event::new("proves_itself", |stage| {
        if stage.guarded {
            script(stage, AUDIT)?;
            script(stage, LEAKTEST)?;
        }
        settle(stage)
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
        excused: WHERE_ANYBODY_MAY_FLUSH,
        ..Event::new("ruleset_flushed", |stage| script(stage, "nft flush ruleset"))
    },
    Event {
        excused: WHERE_ANYBODY_MAY_FLUSH,
        ..Event::new("ruleset_flushed_while_no_daemon_runs", |stage| {
            another_daemon(
                stage,
                "systemctl stop killswitch; sleep 1; nft flush ruleset; sleep 3
                 systemctl start killswitch",
            )
        })
    },
    Event {
        excused: WHERE_ANYBODY_MAY_FLUSH,
        ..Event::new("nftables_service_started_and_stopped", |stage| {
            script(stage, "set -e; systemctl start nftables; sleep 1; systemctl stop nftables")
        })
    },
    Event {
        excused: WHERE_ANYBODY_MAY_FLUSH,
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
            &format!(
                "{FILL_THE_DISK}
                 ! systemctl is-enabled killswitch || systemctl restart killswitch || exit 1
                 sleep 2; rm /var/full.* /var/more.*"
            ),
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
                prepare: FILL_THE_DISK,
                look: "! sh -c 'echo x >/var/more.$$'
                       killswitch status",
                repair: "rm /var/full.* /var/more.*",
            },
        )
    }),
    Event {
        excused: WITHOUT_TABLES,
        ..Event::new("boot_without_nf_tables", |stage| {
            boot_with(
                stage,
                &Trouble {
                    prepare: "module=$(modinfo -n nf_tables) && echo \"$module\" >/root/place &&
                              mv \"$module\" /root/ && depmod",
                    look: "! lsmod | grep '^nf_tables'
                           systemctl is-failed killswitch-lock
                           systemctl status --no-pager --full killswitch-lock | grep 'only the routing guard holds'
                           killswitch status; [ $? = 30 ]",
                    repair: "mv /root/nf_tables.ko* \"$(cat /root/place)\"
                             depmod && modprobe nf_tables",
                },
            )
        })
    },
    Event { ways: ways::GUEST, ..Event::new("libvirt_guest_sends", run_a_guest) },
    Event { ways: ways::GUEST, ..Event::new("docker_container_sends", run_a_container) },
    Event::new("package_upgraded", |stage| {
        script(
            stage,
            &format!(
                "set -e; {UNPACK}; dpkg --install /run/payload/older.deb; {IS_OLDER}
                 dpkg --install /run/payload/killswitch.deb; ! {IS_OLDER}"
            ),
        )
    }),
    Event::new("package_upgrade_killed", |stage| {
        script(
            stage,
            &format!(
                "{UNPACK}
                 for delay in 0.3 1 2; do
                     dpkg --install /run/payload/older.deb || exit 1
                     setsid dpkg --install /run/payload/killswitch.deb & sleep $delay
                     kill -9 -$! && killed=yes
                     sleep 1
                     dpkg --configure --pending
                 done
                 [ \"$killed\" ] || exit 1
                 dpkg --install /run/payload/killswitch.deb && ! {IS_OLDER}"
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
    Event::new("package_removed_and_opened", remove_and_open),
    Event::new("package_purged_and_still_locked", purge_and_stay_locked),
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
        stage.leaked(event.name, &[ways::SENDERS, event.ways])
    })?;
    let excused = ways::excused(event.excused, suite);
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
