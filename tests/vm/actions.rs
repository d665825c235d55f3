//! What events are made of.

use std::thread::sleep;
use std::time::Duration;

use killswitch::lab::harness::Failed;
use killswitch::lab::{Error, Result};

use super::networks::{self, Network};
use super::payload;
use super::stage::Stage;
use super::ways;

pub fn script(stage: &mut Stage, script: &str) -> Result<()> {
    stage.machine.run(script).map(drop)
}

/// What ends the daemon (`$old`) and leads to another one.
pub fn another_daemon(stage: &mut Stage, what: &str) -> Result<()> {
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
pub fn settle(stage: &mut Stage) -> Result<()> {
    if stage.guarded {
        return stage.wait_until_connected().map(drop);
    }
    sleep(Duration::from_secs(3));
    Ok(())
}

const NO_CARRIER: &str = "! ip link show dev eth0 | grep LOWER_UP";

pub fn cable_out_and_in(stage: &mut Stage) -> Result<()> {
    stage.machine.cable(false)?;
    stage.machine.wait_for(NO_CARRIER)?;
    sleep(Duration::from_secs(1));
    stage.machine.cable(true)?;
    stage.machine.wait_for("ip -4 address show dev eth0 | grep -q inet").map(drop)
}

pub fn move_to(stage: &mut Stage, network: &Network) -> Result<()> {
    stage.machine.cable(false)?;
    stage.plug_into(network)?;
    stage.machine.wait_for(NO_CARRIER)?;
    stage.machine.cable(true)?;
    let leased = format!("ip -4 address show dev eth0 | grep -q {}", network.leases.address);
    let waited = stage.machine.wait_for(&leased).map(drop);
    waited.map_err(|error| stage.explained(&error, "networkctl --no-pager --full status eth0"))
}

/// Is in a network until it has believed it, and goes home.
pub fn visit(stage: &mut Stage, network: &Network, believed: &str) -> Result<()> {
    move_to(stage, network)?;
    stage.machine.wait_for(believed)?;
    settle(stage)?;
    move_to(stage, &Network::default())
}

/// LocalNet (CVE-2023-36672).
pub fn visit_a_lan_of_public_addresses(stage: &mut Stage) -> Result<()> {
    networks::claim(&stage.lab, "add")?;
    let believed =
        "ip route get 9.9.9.9 | grep -v via && ip -6 route | grep '^2606:4700:4700::/64'";
    visit(stage, &Network::with_public_prefixes(), believed)?;
    networks::claim(&stage.lab, "delete")
}

/// systemd-logind has said that the sleep is over, and networkd, which answers in turn, has heard it.
const AWAKE: &str = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
    org.freedesktop.login1.Manager PreparingForSleep | grep false &&
    busctl get-property org.freedesktop.network1 /org/freedesktop/network1 \
    org.freedesktop.network1.Manager OperationalState";

/// S3: memory stays on, all else is off. It wakes up in the network given, if one is: the cable is
/// pulled out and in then, since QEMU's network card does not tell what became of it meanwhile.
pub fn suspend(stage: &mut Stage, elsewhere: Option<&Network>) -> Result<()> {
    stage.machine.begin("systemctl suspend")?;
    stage.machine.wait_for_event("SUSPEND")?;
    if let Some(network) = elsewhere {
        stage.plug_into(network)?;
    }
    sleep(Duration::from_secs(3));
    stage.machine.press("system_wakeup")?;
    stage.machine.wait_for_event("WAKEUP")?;
    // Programs run again once the network card does; networkd begins anew when it hears of it.
    stage.machine.run("true")?;
    stage.machine.wait_for(AWAKE)?;
    elsewhere.map_or(Ok(()), |network| move_to(stage, network))
}

pub fn isolate(stage: &mut Stage, target: &str) -> Result<()> {
    stage.machine.begin(&format!("systemctl isolate {target}"))?;
    stage.machine.wait_for(&format!("systemctl is-active {target}"))?;
    sleep(Duration::from_secs(3));
    stage.machine.begin("systemctl default")?;
    stage.machine.wait_for("systemctl is-active multi-user.target").map(drop)
}

/// Boots with something broken, and repairs it.
pub struct Trouble {
    pub prepare: &'static str,
    /// What the administrator finds at the console, line for line; with the kill switch only.
    pub look: &'static str,
    pub repair: &'static str,
}

pub fn boot_with(stage: &mut Stage, trouble: &Trouble) -> Result<()> {
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

/// What an administrator does who has removed the package, and has changed his mind.
fn install_again(stage: &mut Stage) -> Result<()> {
    if !stage.guarded {
        // What is masked cannot be enabled.
        return Ok(());
    }
    stage.machine.run(&format!("{}; systemctl start killswitch", payload::install()))?;
    stage.wait_until_connected().map(drop)
}

/// It opens, as it was told to, and not before.
pub fn remove_and_open(stage: &mut Stage) -> Result<()> {
    let failed = |it: Failed| Error::new(format!("{it:?}"));
    if stage.guarded {
        sleep(Duration::from_secs(1));
        stage.nothing_leaked("what came before the removal").map_err(failed)?;
    }
    script(stage, "KILLSWITCH_REMOVE=unlock apt-get --yes remove killswitch && ! killswitch")?;
    stage.leaked("the removal that opens", &[ways::SENDERS]).map_err(failed)?;
    install_again(stage)?;
    if stage.guarded {
        // What left while it was open.
        stage.sent()?;
    }
    Ok(())
}

/// Nothing of the package is there any more but the lock, and a program that opens it.
pub fn purge_and_stay_locked(stage: &mut Stage) -> Result<()> {
    script(
        stage,
        "KILLSWITCH_REMOVE=keep-locked apt-get --yes purge killswitch || exit 1
         ! test -e /usr/bin/killswitch || exit 1
         ! test -e /etc/killswitch.toml",
    )?;
    if stage.guarded {
        script(
            stage,
            "nft list table inet killswitch | grep drop || exit 1
             /var/lib/killswitch/killswitch status; [ $? != 20 ]",
        )?;
    }
    sleep(Duration::from_secs(3));
    install_again(stage)
}

/// What a container or a guest runs: it tries [`ways::GUEST`], and says when it has.
const GUESTS_ATTEMPTS: &str = "while :; do
        /busybox nslookup example.com 203.0.113.10 >/dev/null 2>&1 &
        /busybox nc -w 1 203.0.113.10 8080 </dev/null >/dev/null 2>&1 &
        /busybox ping -c 1 -W 1 203.0.113.10
        /busybox sleep 0.2
    done";

/// Docker as Debian has it.
pub fn run_a_container(stage: &mut Stage) -> Result<()> {
    // One after the other: an emulated machine takes minutes.
    for unit in ["containerd", "docker"] {
        script(stage, &format!("systemctl start --no-block {unit}"))?;
        stage.machine.wait_for(&format!("systemctl is-active {unit}"))?;
    }
    script(
        stage,
        &format!(
            "set -e; tar -C /bin -c busybox | docker import - guest
             docker run --detach --security-opt apparmor=unconfined --name guest guest /busybox sh -c '{GUESTS_ATTEMPTS}'"
        ),
    )?;
    stage.machine.wait_for("[ $(docker logs guest | grep -c transmitted) -ge 5 ]")?;
    script(
        stage,
        "set -e; docker rm --force guest
         systemctl stop docker docker.socket containerd; ip link delete docker0",
    )
}

/// A guest of libvirt's default network, whose links, addresses and rules are made by hand.
pub fn run_a_guest(stage: &mut Stage) -> Result<()> {
    script(
        stage,
        &format!(
            "set -e
             ip link add virbr0 type bridge
             ip address add 192.168.122.1/24 dev virbr0
             ip netns add guest
             ip link add vnet0 type veth peer name eth0 netns guest
             ip link set vnet0 master virbr0 up
             ip link set virbr0 up
             ip -n guest address add 192.168.122.2/24 dev eth0
             ip -n guest link set eth0 up
             ip -n guest route add default via 192.168.122.1
             sysctl -q net.ipv4.conf.virbr0.forwarding=1 net.ipv4.conf.eth0.forwarding=1
             nft 'table ip libvirt_network {{
                 chain guest_nat {{
                     type nat hook postrouting priority srcnat;
                     ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 masquerade
                 }}
             }}'
             ln -sf /bin/busybox /busybox
             ip netns exec guest timeout 6 sh -c '{GUESTS_ATTEMPTS}' | grep -c transmitted
             ip netns delete guest
             ip link delete virbr0
             nft delete table ip libvirt_network
             sysctl -q net.ipv4.conf.eth0.forwarding=0"
        ),
    )
}
