//! Sockets older than the lock, and connections from outside: threats 18 to 20.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::decoder::{Service, Transport};
use killswitch::lab::harness::{Outcome, eventually};
use killswitch::lab::host::Process;
use killswitch::lab::{Context, Error, Host, Lab, Result};

use crate::common::{LockedLab, canary};
use crate::senders::start;

/// What many naive rulesets have: it lets connections from before the lock live on.
const NAIVE: &str = "table inet naive {
    chain output {
        type filter hook output priority 0; policy drop;
        ct state established,related accept
        oif lo accept
    }
    }";

fn connect(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = host.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(30)))?;
    let stream = stream.during(format!("connecting to {to}"))?;
    stream.set_nonblocking(true).during("tcp")?;
    stream.set_nodelay(true).during("tcp")?;
    Ok(stream)
}

/// Writes without waiting; that the kernel takes it says nothing.
fn write(stream: &mut TcpStream, name: &str) -> Result<()> {
    let _ = stream.write(&canary(name));
    Ok(())
}

/// UDP and TCP of both families; conntrack knows them all, so a naive ruleset lets them live on.
pub fn t18_connections_older_than_the_lock() -> Outcome {
    older_are_stopped(&LockedLab::new()?)
}

pub fn t18_connections_older_than_the_lock_by_the_table_alone() -> Outcome {
    older_are_stopped(&LockedLab::table_alone("")?)
}

fn older_are_stopped(it: &LockedLab) -> Outcome {
    let track = "table inet track { chain output {
        type filter hook output priority 0
        ct state established counter
    }
    }";
    it.lab.client.feed("nft", &["-f", "-"], track)?;
    let far: [SocketAddr; 2] = [(INTERNET_V4, 443).into(), (INTERNET_V6, 443).into()];
    let mut streams = Vec::new();
    let mut datagrams = Vec::new();
    for to in far {
        streams.push(connect(&it.lab.client, to)?);
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = it.lab.client.run(|| UdpSocket::bind((any, 0)))?.during("udp")?;
        socket.connect(to).during("udp")?;
        datagrams.push(socket);
    }
    let mut send = |round: &str| -> Result<()> {
        for (stream, family) in streams.iter_mut().zip(["4", "6"]) {
            write(stream, &format!("{round} tcp{family}"))?;
        }
        for (socket, family) in datagrams.iter().zip(["4", "6"]) {
            let _ = socket.send(&canary(&format!("{round} udp{family}")));
        }
        // Long enough for retransmissions (RFC 6298: from 0.2 s on in Linux).
        std::thread::sleep(Duration::from_millis(700));
        Ok(())
    };
    let kinds = ["tcp4", "tcp6", "udp4", "udp6"];
    let seen = it.during(|_| send("open"))?;
    kinds.iter().try_for_each(|kind| seen.must_show(&format!("open {kind}")))?;
    it.lab.client.feed("nft", &["-f", "-"], NAIVE)?;
    let seen = it.during_unchecked(|_| send("naive"))?;
    kinds.iter().try_for_each(|kind| seen.must_show(&format!("naive {kind}")))?;
    it.lab.client.command("nft", &["delete", "table", "inet", "naive"])?;
    it.lock()?;
    it.during(|_| send("locked"))?.must_be_clean()?;
    Ok(())
}

/// Connections that came in before the lock: what the client's service still has to say.
pub fn t18_connections_from_outside_older_than_the_lock() -> Outcome {
    let it = LockedLab::new()?;
    let listener = it.lab.client.run(|| TcpListener::bind(("0.0.0.0", 8000)))?.during("tcp")?;
    let _caller = connect(&it.lab.internet, (CLIENT_V4, 8000).into())?;
    let (mut stream, _) = listener.accept().during("accepting")?;
    let mut send = |name: &str| -> Result<()> {
        write(&mut stream, name)?;
        std::thread::sleep(Duration::from_millis(700));
        Ok(())
    };
    it.during(|_| send("served open"))?.must_show("served open")?;
    it.lock()?;
    it.during(|_| send("served locked"))?.must_be_clean()?;
    Ok(())
}

/// A service is for the networks that the configuration names, and only to be answered.
pub fn t19_inbound_service() -> Outcome {
    only_the_named_network_is_served(LockedLab::with(INBOUND)?)
}

pub fn t19_inbound_service_by_the_table_alone() -> Outcome {
    only_the_named_network_is_served(LockedLab::table_alone(INBOUND)?)
}

const INBOUND: &str =
    "[allow]\ninbound = [{ proto = \"tcp\", port = 8000, from = [\"192.168.1.0/24\"] }]\n";

fn only_the_named_network_is_served(mut it: LockedLab) -> Outcome {
    const SYN_ACK: &str = "TCP SYN+ACK 192.168.1.50 -> 203.0.113.10";
    it.expectation.inbound = vec![Service {
        transport: Transport::Tcp,
        port: 8000,
        from: LAN_V4.parse().during("a network")?,
    }];
    let listener = it.lab.client.run(|| TcpListener::bind(("0.0.0.0", 8000)))?.during("tcp")?;
    let knock = |lab: &Lab| {
        let to = (CLIENT_V4, 8000).into();
        let patience = Duration::from_secs(1);
        lab.internet.run(|| TcpStream::connect_timeout(&to, patience)).map(drop)
    };
    it.until_shown(SYN_ACK, knock)?;
    // `ct state established accept` is how answers are let out by naive rulesets.
    it.lab.client.feed("nft", &["-f", "-"], NAIVE)?;
    if !it.during_unchecked(knock)?.has_leak(SYN_ACK) {
        return Err("a naive ruleset did not answer".into());
    }
    it.lab.client.command("nft", &["delete", "table", "inet", "naive"])?;
    it.lock()?;
    it.during(knock)?.must_be_clean()?;
    neighbour_is_served(&it, &listener)?;
    drop(listener);
    from_the_services_port(&it)
}

fn neighbour_is_served(it: &LockedLab, listener: &TcpListener) -> Outcome {
    while listener.set_nonblocking(true).is_ok() && listener.accept().is_ok() {}
    listener.set_nonblocking(false)?;
    let mut caller = connect(&it.lab.neighbour, (CLIENT_V4, 8000).into())?;
    let (mut served, from) = listener.accept()?;
    assert_eq!(from.ip(), IpAddr::V4(NEIGHBOUR_V4));
    served.write_all(b"welcome")?;
    let mut answer = Vec::new();
    eventually("the neighbour is answered", || {
        let mut buffer = [0; 64];
        if let Ok(length) = caller.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..length]);
        }
        Ok(answer == b"welcome")
    })?;
    Ok(())
}

/// A local program may not use the service's port to begin something of its own.
fn from_the_services_port(it: &LockedLab) -> Outcome {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    };
    use std::os::fd::AsRawFd;
    let call = |lab: &Lab| -> Result<()> {
        lab.client
            .run(|| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
                setsockopt(&fd, sockopt::ReuseAddr, &true)?;
                setsockopt(&fd, sockopt::ReusePort, &true)?;
                let from = SocketAddr::from((CLIENT_V4, 8000));
                bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
                let to = SocketAddr::from((NEIGHBOUR_V4, 80));
                let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
                Ok::<_, nix::Error>(())
            })?
            .during("calling from the service's port")
    };
    it.during(call)?.must_be_clean()?;
    it.unlock()?;
    it.during(call)?.must_show("TCP SYN 192.168.1.50 -> 192.168.1.20:80")?;
    Ok(())
}

/// A tunnel link whose content is in a file.
fn tunnel_into(it: &LockedLab, file: &Path) -> Result<Process> {
    let name = file.to_str().ok_or_else(|| Error::new("a path that is not text"))?;
    let tunnel = start(&it.lab.client, &["-c", include_str!("tun.py"), TUNNEL_LINK, name])?;
    it.lab.client.ip(&format!(
        "address add {TUNNEL_V4}/32 dev {TUNNEL_LINK}
         address add {TUNNEL_V6}/128 dev {TUNNEL_LINK} nodad
         link set {TUNNEL_LINK} up
         route add default dev {TUNNEL_LINK} table {MARK} proto kernel
         route add ::/0 dev {TUNNEL_LINK} table {MARK} proto kernel"
    ))?;
    Ok(tunnel)
}

fn holds(file: &Path, name: &str) -> Result<bool> {
    let (bytes, canary) = (std::fs::read(file).during(file.display())?, canary(name));
    Ok(bytes.windows(canary.len()).any(|part| part == canary))
}

/// The tunnel's far end must not learn the client's address at home.
pub fn t20_old_sockets_bring_the_home_address_into_the_tunnel() -> Outcome {
    let it = LockedLab::new()?;
    let file = it.write("tunnel", "")?;
    let open = |to: SocketAddr, from: SocketAddr| -> Result<UdpSocket> {
        let socket = it.lab.client.run(|| UdpSocket::bind(from))?.during("udp")?;
        socket.connect(to).during("udp")?;
        Ok(socket)
    };
    let far: [SocketAddr; 2] = [(INTERNET_V4, 443).into(), (INTERNET_V6, 443).into()];
    let any: [SocketAddr; 2] = [([0; 4], 0).into(), ([0u16; 8], 0).into()];
    let old = [open(far[0], any[0])?, open(far[1], any[1])?];
    assert_eq!(old[0].local_addr()?.ip(), IpAddr::V4(CLIENT_V4));
    let _tunnel = tunnel_into(&it, &file)?;
    it.lab.route_into_tunnel()?;
    for (socket, name) in old.iter().zip(["old4", "old6"]) {
        socket.send(&canary(name))?;
        eventually("an old socket's packet in the tunnel", || holds(&file, name))?;
    }
    for family in ["-4", "-6"] {
        it.lab.client.command("ip", &[family, "rule", "del", "pref", "100"])?;
    }
    it.lock()?;
    it.during(|_| {
        for (socket, name) in old.iter().zip(["locked old4", "locked old6"]) {
            let _ = socket.send(&canary(name));
        }
        Ok(())
    })?
    .must_be_clean()?;
    for (index, name) in ["new4", "new6"].into_iter().enumerate() {
        open(far[index], any[index])?.send(&canary(name))?;
        eventually("a new socket's packet in the tunnel", || holds(&file, name))?;
    }
    assert!(!holds(&file, "locked old4")?, "IPv4: the home address is in the tunnel");
    assert!(!holds(&file, "locked old6")?, "IPv6: the home address is in the tunnel");
    Ok(())
}
