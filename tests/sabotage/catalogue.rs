//! The catalogue: a name, how the machine is before, who finds it, and what is done.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use killswitch::config;
use killswitch::lab::addresses::CLIENT_LINK;
use killswitch::lab::harness::Test;
use killswitch::lab::{Context, Host, Result};
use killswitch::netfilter;
use killswitch::netlink::{self, Family, Socket};
use killswitch::policy::Policy;
use killswitch::ruleset;

use crate::stage::Finder::{Audit, Both, Leaktest};
use crate::stage::Setting::{Alone, Connected, Unguarded};
use crate::stage::{Finder, Harm, Sabotage, Stage, try_out};

macro_rules! catalogue {
    ($($name:ident: $setting:expr, $finder:expr, $act:expr;)*) => {
        /// One test for each entry.
        pub const CATALOGUE: &[Test] = &[$((stringify!($name), || {
            let act: fn(&mut Stage) -> Result<Harm> = |stage| {
                let act: fn(&mut Stage) -> Result<_> = $act;
                act(stage).map(Harm::from)
            };
            try_out(&Sabotage { setting: $setting, finder: $finder, act })
        })),*];

        /// What `audit` finds, entry by entry.
        pub const FINDINGS: &[&[&str]] = &[$(Finder::findings($finder)),*];

        /// By which probes `leaktest` sees it, entry by entry.
        pub const LEAKS: &[Option<&[&str]>] = &[$(Finder::probes($finder)),*];
    };
}

catalogue! {
    // The lock itself.
    // Of a machine that is open no probe is tried.
    table_deleted: Alone, Both(&["lock-open"], &[]),
        |it| it.nft("delete table inet killswitch");
    ruleset_flushed: Alone, Audit(&["lock-open"]),
        |it| it.run("nft flush ruleset");
    accept_rule_before_ours: Alone, Audit(&["lock-damaged"]),
        |it| it.nft("insert rule inet killswitch output accept");
    policy_flipped: Alone, Audit(&["lock-damaged"]),
        |it| it.nft("chain inet killswitch output { policy accept; }");
    table_dormant: Alone, Audit(&["lock-damaged"]),
        // The kernel refuses to put a table that persists to sleep.
        |it| it.nft("delete table inet killswitch
            table inet killswitch { flags dormant; chain output {
                type filter hook output priority 0; policy drop; drop; }; }");
    chain_missing: Alone, Audit(&["lock-damaged"]),
        |it| it.nft("flush chain inet killswitch forward\ndelete chain inet killswitch forward");
    server_added: Alone, Audit(&["lock-damaged"]),
        |it| it.nft("add element inet killswitch wireguard4 { 1.1.1.1 . 53 }");
    egress_guard_deleted: Alone,
        Both(&["egress-guard-missing"], &["packet-socket", "packet-socket-vlan"]),
        |it| it.nft("delete table netdev killswitch");
    one_link_without_guard: Alone,
        Both(&["egress-guard-missing"], &["packet-socket", "packet-socket-vlan"]),
        link_without_guard;
    configuration_is_another: Alone,
        Audit(&["lock-damaged", "egress-guard-damaged", "routing-guard-damaged"]),
        |it| it.edit("198.51.100.7:51820", "198.51.100.9:51820")
            .and_then(|()| it.run("ip rule del pref 27501"));
    daemon_killed: Connected, Audit(&["daemon-not-running"]), |it| {
        if let Some(daemon) = &mut it.daemon {
            daemon.crash();
        }
        Ok(())
    };

    // The routing guard.
    guards_rule_deleted: Alone, Audit(&["routing-guard-damaged"]),
        |it| it.run("ip rule del pref 27590");
    guards_ipv6_rule_deleted: Alone, Audit(&["routing-guard-damaged"]),
        |it| it.run("ip -6 rule del pref 27599");
    guards_last_route_deleted: Alone, Audit(&["routing-guard-damaged"]),
        |it| it.run("ip route flush table 27507");
    rule_before_ours: Alone, Audit(&["rule-before-guard"]),
        |it| it.run("ip rule add pref 100 lookup main");
    ipv6_rule_before_ours: Alone, Audit(&["rule-before-guard"]),
        |it| it.run("ip -6 rule add pref 100 lookup main");
    rule_among_ours: Alone, Audit(&["rule-before-guard"]),
        |it| it.run("ip rule add pref 27502 not fwmark 0x1 lookup main");
    rule_that_skips_ours: Alone, Audit(&["rule-before-guard"]),
        |it| it.run("ip rule add pref 100 goto 32766");
    ipv6_rule_that_skips_ours: Alone, Audit(&["rule-before-guard"]),
        |it| it.run("ip -6 rule add pref 100 goto 32766");
    route_in_table_local: Alone, Audit(&["rogue-route"]),
        |it| it.run("ip route add 203.0.113.9 dev eth0 table local");
    ipv6_route_in_table_local: Alone, Audit(&["rogue-route"]),
        |it| it.run("ip -6 route add 2001:db8:1::/48 dev eth0 table local");
    route_in_our_table: Alone, Audit(&["routing-guard-damaged"]),
        |it| it.run("ip route add 0.0.0.0/1 dev eth0 table 27507 proto kernel");
    gateway_in_our_table: Alone, Audit(&["routing-guard-damaged"]),
        |it| it.run("ip route add 203.0.113.0/24 via 192.168.1.1 table 27507 proto kernel");

    // Other tables.
    mark_set_by_another_table: Connected, Audit(&["mark-set"]), |it| it.nft(
        "table inet foreign { chain out { type filter hook output priority -10;
            meta mark set 0x6b73; }; }");
    mark_set_in_a_chain_that_is_jumped_to: Connected, Audit(&["mark-set"]), |it| it.nft(
        "table ip foreign { chain inner { udp dport 53 meta mark set 0x6b73; }
            chain out { type filter hook output priority -10; jump inner; }; }");
    mark_set_in_a_chain_of_a_map: Connected, Audit(&["mark-set"]), |it| it.nft(
        "table inet foreign { chain inner { meta mark set 0x6b73; }
            chain out { type filter hook output priority -10;
                meta l4proto vmap { udp : jump inner }; }; }");
    mark_added_to_the_packets_own: Connected, Audit(&["mark-set"]), |it| it.nft(
        "table inet foreign { chain out { type filter hook output priority -10;
            meta mark set meta mark | 0x6b73; }; }");
    mark_set_at_egress: Connected, Audit(&["mark-set"]), |it| it.nft(
        "table netdev foreign { chain out { type filter hook egress device eth0 priority -500;
            meta mark set 0x6b73; }; }");
    mark_restored_by_another_table: Connected, Audit(&["mark-restored"]), |it| it.nft(
        "table inet foreign { chain out { type filter hook output priority -10;
            meta mark set ct mark; }; }");
    loopback_sent_to_the_internet: Connected, Audit(&["dnat-output"]), |it| it.nft(
        "table ip foreign { chain out { type nat hook output priority -100;
            ip daddr 127.0.0.1 tcp dport 9 dnat to 203.0.113.10; }; }");
    forward_to_the_link: Connected, Audit(&["nft-forward"]), |it| it.nft(
        "table netdev foreign { chain thief { type filter hook ingress device lo priority 0;
            fwd to eth0; }; }");
    copies_to_a_stranger: Connected, Audit(&["nft-forward"]), |it| it.nft(
        "table ip foreign { chain out { type filter hook output priority 0;
            dup to 203.0.113.10; }; }");
    routed_anew: Connected, Audit(&["route-chain"]), |it| it.nft(
        "table inet foreign { chain out { type route hook output priority 100;
            meta mark set 0x1; }; }");

    // Past every table.
    redirect_of_loopback: Connected, Audit(&["tc-redirect"]), |it| {
        it.run("tc qdisc add dev lo clsact")?;
        it.run("tc filter add dev lo ingress protocol ip u32 match u32 0 0 \
                action mirred egress redirect dev eth0")
    };
    redirect_at_egress: Connected, Audit(&["tc-redirect"]), |it| {
        it.run("tc qdisc add dev lo clsact")?;
        it.run("tc filter add dev lo egress protocol all u32 match u32 0 0 \
                action mirred egress mirror dev eth0")
    };
    // A connection's first packet has no token: without Ethernet's header it is nobody's.
    tunnel_mirrored_in_clear: Connected, Both(&["tc-redirect"],
        &["dns", "everything-else", "icmp", "ntp", "quic", "server-udp", "stun", "udp"]), |it| {
        it.run("tc qdisc add dev wg0 clsact")?;
        it.run("tc filter add dev wg0 egress protocol all u32 match u32 0 0 \
                action mirred egress mirror dev eth0")
    };
    filter_on_the_nic: Connected, Audit(&["tc-filter"]), |it| {
        it.run("tc qdisc add dev eth0 clsact")?;
        it.run("tc filter add dev eth0 egress protocol ip u32 match u32 0 0 flowid 1:1")
    };
    xdp_program_on_the_nic: Connected, Audit(&["xdp-program"]), |it| Harm::by_root(|| {
        it.lab.client.feed("python3", &["-", CLIENT_LINK], XDP_PROGRAM).map(Harm::from)
    });
    af_xdp_socket: Connected, Audit(&["af-xdp-socket"]), |it| {
        let script = format!("{}\n{WAIT}", include_str!("../threats_a/xdp.py"));
        it.start("python3", &["-c", &script, CLIENT_LINK])
    };
    packet_socket: Connected, Audit(&["packet-socket"]), |it| {
        let open = "import socket\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)";
        it.start("python3", &["-c", &format!("{open}\n{WAIT}")])
    };
    packet_socket_without_guard: Unguarded, Both(&["packet-socket"], &["everything-else"]),
        |it| it.start("python3", &["-c", SENDER, CLIENT_LINK]);
    macvlan_without_guard: Unguarded, Both(&["child-elsewhere"], &["everything-else"]), |it| {
        let guest = Host::new("guest")?;
        it.lab.client.ip(&format!(
            "link add mv0 link {CLIENT_LINK} netns {} type macvlan mode bridge", guest.path()
        ))?;
        sender_in(guest, "mv0")
    };
    bridged_guest_without_guard: Unguarded, Leaktest(&["everything-else"]), |it| {
        let guest = Host::new("guest")?;
        it.lab.client.ip(&format!(
            "link add br9 type bridge\nlink set br9 up\nlink set {CLIENT_LINK} master br9
             link add tap0 type veth peer name eth0 netns {}
             link set tap0 master br9\nlink set tap0 up", guest.path()
        ))?;
        sender_in(guest, "eth0")
    };
    spanning_tree_without_guard: Unguarded, Leaktest(&["everything-else"]), |it|
        it.lab.client.ip(&format!(
            "link add br9 type bridge stp_state 1 hello_time 100
             link set br9 up\nlink set {CLIENT_LINK} master br9"
        ));
    queries_for_groups_without_guard: Unguarded, Leaktest(&["everything-else"]), |it|
        it.lab.client.ip(&format!(
            "link add br9 type bridge mcast_querier 1 mcast_startup_query_interval 100 \
             mcast_startup_query_count 1000
             link set br9 up\nlink set {CLIENT_LINK} master br9"
        ));
    capable_process: Connected, Audit(&["capability"]), |it| Harm::by_root(|| {
        let words = "--reuid=65534 --regid=65534 --clear-groups --inh-caps=+net_raw \
                     --ambient-caps=+net_raw sh -c";
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.push("echo ready; exec sleep 3600");
        it.start("setpriv", &words).map(Harm::from)
    });
    container_with_the_machines_network: Connected, Audit(&["container-host-network"]),
        |it| it.start("unshare", &["-p", "-f", "--kill-child", "sh", "-c", "echo ready; sleep 3600; :"]);
    macvlan_in_another_namespace: Connected, Audit(&["child-elsewhere"]), macvlan_elsewhere;
    macvlan_in_a_kept_namespace: Connected, Audit(&["child-elsewhere"]), |it| {
        it.run("ip netns add hidden")?;
        it.run("ip link add mv0 link eth0 type macvlan mode bridge")?;
        it.run("ip link set mv0 netns hidden")
    };

    // Settings.
    loopback_routed: Connected, Audit(&["route-localnet"]),
        |it| it.lab.client.sysctl("net/ipv4/conf/eth0/route_localnet", "1");
    replies_dropped_by_rp_filter: Connected, Audit(&["src-valid-mark"]), |it| {
        it.lab.client.sysctl("net/ipv4/conf/all/src_valid_mark", "0")?;
        it.lab.client.sysctl("net/ipv4/conf/eth0/rp_filter", "1")
    };
    arp_answers_for_the_tunnel: Unguarded, Audit(&["arp-ignore"]),
        |it| it.lab.client.sysctl("net/ipv4/conf/all/arp_ignore", "0");
    resolver_on_the_lan: Connected, Audit(&["resolver-outside"]), |it| {
        write(&it.drop_in("dns.toml")?, "[tunnel]\ndns = [\"10.64.0.1\"]\n", 0o600)?;
        write(Path::new("/run/resolv.conf"), "nameserver 192.168.1.1\n", 0o644)?;
        Ok(seen("mount --bind /run/resolv.conf /etc/resolv.conf"))
    };
    clock_in_the_past: Connected, Audit(&["clock-behind"]), |it| {
        let file = it.configuration.display().to_string();
        it.lab.client.command("touch", &["-d", "+2 days", &file]).map(drop)
    };

    // Files.
    key_readable_by_others: Connected, Audit(&["configuration-refused"]),
        |it| mode(&it.configuration.with_file_name("private.key"), 0o644);
    configuration_writable_by_others: Connected, Audit(&["configuration-refused"]),
        |it| mode(&it.configuration, 0o666);
    drop_in_is_a_link: Connected, Audit(&["configuration-refused"]), |it| {
        let target = it.configuration.with_file_name("elsewhere");
        write(&target, "[allow]\nlan = [\"192.168.1.0/24\"]\n", 0o600)?;
        symlink(&target, it.drop_in("a.toml")?).during("a link")
    };
    control_directory_writable: Connected, Audit(&["file-writable"]),
        |_| mode(Path::new("/run/killswitch"), 0o777);

    // The next boot.
    lock_unit_disabled: Connected, Audit(&["lock-unit-not-enabled"]),
        |_| Ok(booted("rm $units/sysinit.target.wants/killswitch-lock.service"));
    lock_unit_masked: Connected, Audit(&["lock-unit-not-enabled"]),
        |_| Ok(booted("ln -sf /dev/null $units/killswitch-lock.service"));
    daemon_unit_disabled: Connected, Audit(&["daemon-unit-not-enabled"]),
        |_| Ok(booted("rm $units/multi-user.target.wants/killswitch.service"));
    not_wanted_at_boot: Connected, Audit(&["at-boot-off"]), |it| {
        it.edit("at_boot = true", "at_boot = false")?;
        Ok(booted(""))
    };
    unit_before_the_lock: Connected, Audit(&["early-unit"]), |_| Ok(booted(
        "printf '[Unit]\\nDefaultDependencies=no\\n[Service]\\nExecStart=/usr/bin/curl x\\n' \
            >$units/early.service
         ln -s ../early.service $units/sysinit.target.wants/"));
    unit_with_a_long_line: Connected, Audit(&["early-unit"]), |_| Ok(booted(
        "printf '[Unit]\\nDefaultDependencies=no\\n[Service]\\nExecStart=/bin/sh -c \\\\\\n /usr/bin/curl\\n' \
            >$units/early.service
         ln -s ../early.service $units/sysinit.target.wants/"));
    unit_of_a_generator: Connected, Audit(&["early-unit"]), |_| Ok(booted(
        "generated=/run/systemd/generator; mkdir -p $generated/sysinit.target.wants
         printf '[Unit]\\nDefaultDependencies=no\\n[Service]\\nExecStart=/usr/bin/curl x\\n' \
            >$generated/early.service
         ln -s ../early.service $generated/sysinit.target.wants/"));
    unit_writable_by_others: Connected, Audit(&["file-writable"]),
        |_| Ok(booted("chmod 666 $units/killswitch-lock.service"));
    initrd_with_a_network: Connected, Audit(&["initrd-network"]), |_| Ok(seen(
        "echo ip=dhcp >/run/cmdline; mount --bind /run/cmdline /proc/cmdline"));
}

/// A machine that systemd booted, with our units enabled, as the program sees it.
pub const BOOTED: &str = concat!(
    "units=/etc/systemd/system; source=",
    env!("CARGO_MANIFEST_DIR"),
    "/systemd\n",
    "mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; mkdir /run/systemd/system\n",
    "mount -t tmpfs -o mode=755 tmpfs $units\n",
    "cp $source/*.service $units/\n",
    "mkdir $units/sysinit.target.wants $units/multi-user.target.wants\n",
    "ln -s ../killswitch-lock.service $units/sysinit.target.wants/\n",
    "ln -s ../killswitch.service $units/multi-user.target.wants/\n",
    "chmod 755 $units $units/*.wants; chmod 644 $units/*.service\n",
);

const WAIT: &str = "import time\nprint('ready', flush=True)\ntime.sleep(3600)";

/// Broadcasts frames of a type for experiments (IEEE 802) by a link, without end.
const SENDER: &str = "
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
frame = bytes([255] * 6) + s.getsockname()[4] + bytes([0x88, 0xb5]) + bytes(46)
print('ready', flush=True)
while True:
    try:
        s.send(frame)
    except OSError:
        pass
    time.sleep(0.1)
";

/// Loads "let it pass" and attaches it in generic mode: bpf(2), and IFLA_XDP over rtnetlink.
const XDP_PROGRAM: &str = "
import ctypes, os, socket, struct, sys
instructions = ctypes.create_string_buffer(
    struct.pack('<BBhi', 0xb7, 0, 0, 2) + struct.pack('<BBhi', 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b'GPL')
BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, SYS_BPF = 5, 6, 321 if os.uname().machine == 'x86_64' else 280
attributes = ctypes.create_string_buffer(struct.pack('=IIQQ', BPF_PROG_TYPE_XDP, 2,
    ctypes.addressof(instructions), ctypes.addressof(licence)) + bytes(96))
libc = ctypes.CDLL(None, use_errno=True)
program = libc.syscall(SYS_BPF, BPF_PROG_LOAD, attributes, 72)
if program < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
nested = struct.pack('=HHi', 8, 1, program) + struct.pack('=HHI', 8, 3, 2)
attribute = struct.pack('=HH', 4 + len(nested), 43 | 0x8000) + nested
body = struct.pack('=BxHiII', 0, 0, socket.if_nametoindex(sys.argv[1]), 0, 0) + attribute
request = struct.pack('=IHHII', 16 + len(body), 19, 5, 1, 0) + body
kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
kernel.send(request)
error = struct.unpack('=i', kernel.recv(4096)[16:20])[0]
if error:
    sys.exit(os.strerror(-error))
";

/// What the program sees, by mounts of its own.
fn seen(mounts: &str) -> Harm {
    Harm { mounts: mounts.into(), ..Harm::default() }
}

fn booted(more: &str) -> Harm {
    seen(&format!("{BOOTED}{more}"))
}

fn write(path: &Path, text: &str, bits: u32) -> Result<()> {
    fs::write(path, text).during(path.display())?;
    mode(path, bits)
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).during(path.display())
}

/// The guard goes link by link, as on older kernels, and a link comes later.
fn link_without_guard(stage: &mut Stage) -> Result<()> {
    let config = config::load(&stage.configuration).during("the configuration")?;
    let policy = Policy::from_config(&config);
    stage.nft("delete table netdev killswitch")?;
    stage.lab.client.run(|| -> Result<()> {
        let route = Socket::open(Family::Route).during("netlink")?;
        let links = netfilter::guarded(&policy, &netlink::links(&route).during("links")?);
        let table = ruleset::guard(&policy, Some(&netfilter::references(&links)));
        let netfilter = Socket::open(Family::Netfilter).during("netlink")?;
        netfilter::apply(&netfilter, &table).during("the guard").map(drop)
    })??;
    stage.audit("")?;
    stage.run("ip link add late up type veth peer name late-peer")?;
    stage.run("ip link set late-peer up")
}

/// In another machine, by its only link.
fn sender_in(guest: Host, link: &str) -> Result<Harm> {
    guest.ip(&format!("link set {link} up"))?;
    let process = Stage::start_in(&guest, "python3", &["-c", SENDER, link])?;
    Ok(Harm { _hosts: vec![guest], ..process.into() })
}

fn macvlan_elsewhere(stage: &mut Stage) -> Result<Harm> {
    let guest = Host::new("guest")?;
    let mut sleep = Command::new("sleep");
    sleep.arg("3600");
    let process = guest.start(sleep)?;
    stage.lab.client.ip(&format!(
        "link add mv0 link {CLIENT_LINK} netns {} type macvlan mode bridge",
        guest.path()
    ))?;
    Ok(process.into())
}
