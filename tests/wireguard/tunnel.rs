//! A client with a tunnel of its own, and what the system's tools say of it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use killswitch::config::{self, Config};
use killswitch::engine::{Candidate, Reading};
use killswitch::lab::addresses::*;
use killswitch::lab::harness::eventually;
use killswitch::lab::{Context, Error, Lab, Result, namespaces, setup};
use killswitch::wireguard::{self, Device, Link};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A client whose device is not yet made, and both servers, running.
pub struct Tunnel {
    pub config: Config,
    pub device: Device,
    pub lab: Lab,
}

impl Tunnel {
    pub fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    /// With another configuration.
    pub fn with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        namespaces::tun_device()?;
        let lab = Lab::with_servers()?;
        let file = setup::write_configuration(&lab, "")?;
        let mut config = config::load(&file).during("the configuration")?;
        change(&mut config);
        let device = device(&config)?;
        Ok(Tunnel { config, device, lab })
    }

    /// With a link and a session with the first server.
    pub fn connected() -> Result<Self> {
        let it = Self::new()?;
        it.ensure()?;
        it.connect(it.first())?;
        Ok(it)
    }

    /// Does something with the device in the client.
    pub fn ask<T: Send>(
        &self,
        work: impl FnOnce(&Device) -> std::result::Result<T, wireguard::Error> + Send,
    ) -> Result<T> {
        self.lab.client.run(|| work(&self.device))?.during("the device")
    }

    pub fn ensure(&self) -> Result<Link> {
        self.ask(Device::ensure_link)
    }

    pub fn read(&self) -> Result<Reading> {
        self.ask(Device::read)?.ok_or_else(|| Error::new("no reading"))
    }

    pub fn first(&self) -> Candidate {
        Candidate { server: 0, endpoint: self.lab.servers[0].endpoint_v4 }
    }

    /// Sets a peer and waits for its session.
    pub fn connect(&self, candidate: Candidate) -> Result<()> {
        self.ask(|device| device.set_peer(candidate))?;
        eventually("a handshake", || Ok(self.read()?.handshake_age.is_some()))
    }

    /// Leads what the client sends into the tunnel.
    pub fn route(&self) -> Result<()> {
        self.lab.client.ip(&format!(
            "route replace default dev {TUNNEL_LINK} table {MARK}
             route replace ::/0 dev {TUNNEL_LINK} table {MARK}"
        ))?;
        self.lab.route_into_tunnel()
    }

    pub fn ping(&self, address: &str) -> Result<()> {
        self.lab.client.command("ping", &["-c1", "-W20", address]).map(drop)
    }

    /// Sends one datagram into the tunnel's link, wherever routes lead.
    pub fn send(&self, source: IpAddr, target: SocketAddr) -> Result<()> {
        self.lab
            .client
            .run(|| -> std::io::Result<()> {
                let socket = UdpSocket::bind((source, 0))?;
                nix::sys::socket::setsockopt(
                    &socket,
                    nix::sys::socket::sockopt::BindToDevice,
                    &TUNNEL_LINK.into(),
                )?;
                socket.send_to(b"killswitch", target).map(drop)
            })?
            .during("sending into the tunnel")
    }

    /// `wg show wg0 WHAT`.
    pub fn wg(&self, what: &str) -> Result<String> {
        self.lab
            .client
            .command("wg", &["show", TUNNEL_LINK, what])
            .map(|words| words.trim().to_owned())
    }

    /// `ip address show` of a link, without lifetimes.
    pub fn addresses(&self, link: &str) -> Result<String> {
        self.lab.client.command("ip", &["-oneline", "address", "show", "dev", link])
    }

    /// The process of the userspace WireGuard, once it is the only one: one that was killed takes
    /// its time, waiting for the kernel to be done with its link.
    pub fn process(&self) -> Result<Pid> {
        let mut found = Vec::new();
        eventually("one userspace WireGuard", || {
            found = processes()?;
            Ok(found.len() == 1)
        })?;
        Ok(found[0])
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.process()?, signal).during("kill")
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Err(error) = self.ask(Device::remove_link) {
            println!("removing the tunnel: {error}");
        }
    }
}

/// With the program in KILLSWITCH_WIREGUARD, or the laboratory's own.
pub fn device(config: &Config) -> Result<Device> {
    let device = Device::new(config);
    Ok(match std::env::var_os("KILLSWITCH_WIREGUARD") {
        Some(_) => device,
        None => device.with_program(setup::wireguard()?),
    })
}

/// Every child of ours, zombies not counted.
pub fn processes() -> Result<Vec<Pid>> {
    Ok(children()?.into_iter().filter(|(_, zombie)| !zombie).map(|(process, _)| process).collect())
}

/// Every child of ours, and whether it is a zombie.
pub fn children() -> Result<Vec<(Pid, bool)>> {
    let own = format!("PPid:\t{}", std::process::id());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").during("/proc")? {
        let path: PathBuf = entry.during("/proc")?.path();
        let Ok(status) = std::fs::read_to_string(path.join("status")) else { continue };
        let name = path.file_name().and_then(|it| it.to_str()).and_then(|it| it.parse().ok());
        if let Some(process) = name
            && status.lines().any(|line| line == own)
        {
            found.push((Pid::from_raw(process), status.contains("State:\tZ")));
        }
    }
    Ok(found)
}
