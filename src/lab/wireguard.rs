//! WireGuard in this process: gotatun on a thread that lives in a machine of the laboratory.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use gotatun::device::uapi::UapiServer;
use gotatun::device::{DefaultDeviceTransports, Device, DeviceBuilder};
use gotatun::x25519::{PublicKey, StaticSecret};
use tokio::sync::mpsc as commands;

use super::error::{Context, Error, Result};
use super::host::{Host, Worker};
use super::namespaces;

/// A WireGuard key with its public half.
#[derive(Clone)]
pub struct KeyPair {
    /// The private key.
    pub private: [u8; 32],
    /// The public key.
    pub public: [u8; 32],
}

/// How to set a WireGuard device up.
#[derive(Clone)]
pub struct Settings {
    /// The tun link's name.
    pub link: String,
    /// Its key.
    pub private_key: [u8; 32],
    /// UDP port; 0: the kernel chooses.
    pub listen_port: u16,
    /// Firewall mark of the outer packets.
    pub mark: Option<u32>,
    /// The one peer.
    pub peer: Peer,
}

/// The other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its key.
    pub public_key: [u8; 32],
    /// Where it is, if we begin.
    pub endpoint: Option<SocketAddr>,
    /// What is routed to it and accepted from it.
    pub allowed: Vec<String>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
}

/// What went through a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Since when the session is established.
    pub since_handshake: Option<Duration>,
    /// Bytes received.
    pub received: usize,
    /// Bytes sent.
    pub sent: usize,
}

/// A running device. Dropping it is like killing a userspace WireGuard: link, addresses, routes
/// and sockets vanish at once.
pub struct Wireguard {
    commands: commands::UnboundedSender<Command>,
    // Joined after `drop` has sent the command to stop.
    _worker: Worker<Option<()>>,
}

enum Command {
    Transfer(mpsc::Sender<Transfer>),
    Endpoint(SocketAddr, mpsc::Sender<bool>),
    Stop,
}

type Running = Device<DefaultDeviceTransports>;

impl KeyPair {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// If /dev/urandom cannot be read.
    pub fn generate() -> Result<Self> {
        let mut private = [0u8; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut private))
            .during("/dev/urandom")?;
        let public = PublicKey::from(&StaticSecret::from(private)).to_bytes();
        Ok(KeyPair { private, public })
    }

    /// The private key as configuration files write it.
    pub fn private_text(&self) -> String {
        Base64::encode_string(&self.private)
    }

    /// The public key as configuration files write it.
    pub fn public_text(&self) -> String {
        Base64::encode_string(&self.public)
    }
}

impl Wireguard {
    /// Starts a device on a machine. Its link is there on return, without addresses and down.
    ///
    /// # Errors
    /// Why not; see [`namespaces::tun_device`].
    pub fn start(host: &Host, settings: Settings) -> Result<Self> {
        namespaces::tun_device()?;
        let (commands, queue) = commands::unbounded_channel();
        let (ready, outcome) = mpsc::channel();
        // The link and the sockets belong to the namespace of the thread that makes them.
        let worker = host.spawn("wireguard", move |_stop| live(settings, queue, &ready))?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(Wireguard { commands, _worker: worker }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(format!("WireGuard in {} did not start", host.name()))),
        }
    }

    /// What went through so far.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn transfer(&self) -> Result<Transfer> {
        self.ask(Command::Transfer)
    }

    /// Moves the peer to another endpoint, as roaming and fail-over do.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn set_endpoint(&self, endpoint: SocketAddr) -> Result<()> {
        match self.ask(|answer| Command::Endpoint(endpoint, answer))? {
            true => Ok(()),
            false => Err(Error::new("WireGuard did not take the endpoint")),
        }
    }

    /// Ends the device; its link is gone on return. The same as dropping it.
    pub fn stop(self) {}

    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Result<T> {
        let (answer, answers) = mpsc::channel();
        let _ = self.commands.send(command(answer));
        answers.recv().map_err(|_| Error::new("WireGuard is gone"))
    }
}

impl Drop for Wireguard {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
    }
}

fn live(
    settings: Settings,
    queue: commands::UnboundedReceiver<Command>,
    ready: &mpsc::Sender<Result<()>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(Error::new(format!("tokio: {error}"))));
            return;
        }
    };
    runtime.block_on(async {
        match build(settings).await {
            Ok((device, peer)) => {
                let _ = ready.send(Ok(()));
                obey(device, peer, queue).await;
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
    // Tasks still hold the tun device: they end with their runtime.
    drop(runtime);
}

/// Is a userspace WireGuard as wireguard-go is: makes the tun link, serves its socket in
/// /var/run/wireguard, and stays until the link is gone.
///
/// # Errors
/// Why it could not begin.
pub fn serve(link: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.during("tokio")?.block_on(async {
        let builder = DeviceBuilder::new()
            .with_default_udp()
            .create_tun(link)
            .during(format!("making {link}"))?;
        let socket = UapiServer::default_unix_socket(link, None, None)
            .during(format!("the socket of {link}"))?;
        let mut device =
            builder.with_uapi(socket).build().await.during(format!("WireGuard on {link}"))?;
        device.wait().await;
        Ok(())
    })
}

async fn build(settings: Settings) -> Result<(Running, PublicKey)> {
    let key = PublicKey::from(settings.peer.public_key);
    let mut peer = gotatun::device::Peer::new(key);
    peer.endpoint = settings.peer.endpoint;
    peer.keepalive = settings.peer.keepalive;
    for network in &settings.peer.allowed {
        peer = peer.with_allowed_ip(network.parse().during(network)?);
    }
    let mut builder = DeviceBuilder::new()
        .with_default_udp()
        .create_tun(&settings.link)
        .during(format!("making {}", settings.link))?
        .with_private_key(StaticSecret::from(settings.private_key))
        .with_listen_port(settings.listen_port)
        .with_peer(peer);
    if let Some(mark) = settings.mark {
        builder = builder.with_fwmark(mark);
    }
    let device = builder.build().await.during(format!("WireGuard on {}", settings.link))?;
    Ok((device, key))
}

async fn obey(
    mut device: Running,
    peer: PublicKey,
    mut queue: commands::UnboundedReceiver<Command>,
) {
    while let Some(command) = queue.recv().await {
        match command {
            Command::Transfer(answer) => {
                let peers = device.peers().await;
                let stats = peers.first().map_or_else(Transfer::default, |peer| Transfer {
                    since_handshake: peer.stats.last_handshake,
                    received: peer.stats.rx_bytes,
                    sent: peer.stats.tx_bytes,
                });
                let _ = answer.send(stats);
            }
            Command::Endpoint(endpoint, answer) => {
                let changed =
                    device.modify_peer(&peer, |peer| peer.set_endpoint(Some(endpoint))).await;
                let _ = answer.send(changed.unwrap_or(false));
            }
            Command::Stop => break,
        }
    }
    device.stop().await;
}
