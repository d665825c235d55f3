use std::net::IpAddr;
use std::path::PathBuf;

use defguard_wireguard_rs::host::Host;
use defguard_wireguard_rs::net::IpAddrMask;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{InterfaceConfiguration, Kernel, WGApi, WireguardInterfaceApi, key};
use ipnet::IpNet;
use zeroize::Zeroize;

use super::clock::HandshakeClock;
use super::link::{LONGEST_NAME, Links};
use super::{Error, probe, program, uapi};
use crate::config::{Backend, Config, Key, Server};
use crate::engine::{Candidate, Reading, TunnelLink};
use crate::netlink;

/// What wg-quick takes without a better reason: 1500 less the overhead over IPv6.
const DEFAULT_MTU: u16 = 1420;

/// The tunnel's WireGuard, in the caller's network namespace. Dropping it leaves the tunnel as it is.
///
/// One call at a time: two that make the link would get into each other's way.
pub struct Device {
    interface: String,
    backend: Backend,
    private_key: Option<Key>,
    mark: u32,
    listen_port: u16,
    addresses: Vec<IpNet>,
    dns: Vec<IpAddr>,
    mtu: u16,
    servers: Vec<Server>,
    /// The userspace WireGuard to run, instead of looking for one.
    program: Option<PathBuf>,
    clock: HandshakeClock,
}

/// The tunnel's link, ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// What this machine cannot give it, for people.
    pub degraded: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Userspace,
}

impl Device {
    /// From a configuration. Touches nothing. The environment variable KILLSWITCH_WIREGUARD, if it
    /// is an absolute path, names the userspace WireGuard to run.
    pub fn new(config: &Config) -> Self {
        let program = std::env::var_os(program::OVERRIDE).map(PathBuf::from);
        Device {
            interface: config.tunnel.interface.clone(),
            backend: config.tunnel.backend,
            private_key: config.tunnel.private_key.clone(),
            mark: config.tunnel.mark,
            listen_port: config.tunnel.listen_port.unwrap_or(0),
            addresses: config.tunnel.addresses.clone(),
            dns: config.tunnel.dns.clone(),
            mtu: config.tunnel.mtu.unwrap_or(DEFAULT_MTU),
            servers: config.servers.clone(),
            program: program.filter(|path| path.is_absolute()),
            clock: HandshakeClock::default(),
        }
    }

    /// Runs this userspace WireGuard, whichever are installed.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Makes the link or adopts it: with our key, mark, port, MTU and no address but ours, and up.
    ///
    /// What is so already is left alone: a working session goes on, and no event follows. A foreign
    /// link of the name is put aside first, under another name.
    ///
    /// # Errors
    /// What could not be had. What was done stays; call again.
    pub fn ensure_link(&self) -> Result<Link, Error> {
        let links = Links::open()?;
        program::reap();
        let (link, kind) = match self.adopt(&links)? {
            Some(found) => found,
            None => self.create(&links)?,
        };
        // Only now: one that is given another name from here on leaves its own, which is noticed.
        self.delete_others_with_our_key(&links)?;
        let mut ready = Link { index: link.index, degraded: Vec::new() };
        if !link.up
            && kind == Kind::Userspace
            && let Err(error) = links.set_no_link_local(&link)
            && !error.is_ipv6_disabled()
        {
            return Err(error);
        }
        links.set_mtu(&link, self.mtu)?;
        self.configure(kind)?;
        for address in links.set_addresses(&link, &self.addresses)? {
            ready.degraded.push(format!("tunnel: {address} is left out, since IPv6 is disabled"));
        }
        if !link.up {
            links.set_up(&link, true)?;
        }
        Ok(ready)
    }

    /// What stands under the tunnel's name, and its index.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn link(&self) -> Result<(TunnelLink, Option<u32>), Error> {
        program::reap();
        let Some(link) = Links::open()?.find(&self.interface)? else {
            return Ok((TunnelLink::Absent, None));
        };
        let state = match (self.kind_if_ours(&link), link.up) {
            (None, _) => TunnelLink::Foreign,
            (Some(_), false) => TunnelLink::Down,
            (Some(_), true) => TunnelLink::Up,
        };
        Ok((state, Some(link.index)))
    }

    /// Whether somebody else gave the tunnel's link another MTU, put an address on it, or took one of
    /// ours: then packets do not fit, or the kernel may choose a source that the lock does not let
    /// into the tunnel. [`Device::ensure_link`] mends it.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn has_foreign_settings(&self, link: u32) -> Result<bool, Error> {
        let links = Links::open()?;
        let fits = |it: &netlink::Link| it.index != link || it.mtu == u32::from(self.mtu);
        Ok(!links.all()?.iter().all(fits) || self.has_foreign_addresses(&links, link)?)
    }

    fn has_foreign_addresses(&self, links: &Links, link: u32) -> Result<bool, Error> {
        let difference = links.compare_addresses(link, &self.addresses)?;
        let ipv6 = self.has_ipv6();
        // The kernel takes those of IPv6 whenever the link goes down (addrconf_ifdown).
        let taken = difference.missing.iter().any(|net| net.addr().is_ipv4() || ipv6);
        let added = difference.foreign.iter().any(|it| !netlink::is_link_local(it.address));
        Ok(taken || added)
    }

    /// Where IPv6 is disabled on the link, no address of ours can be there.
    fn has_ipv6(&self) -> bool {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.interface);
        std::fs::read(path).is_ok_and(|value| value.trim_ascii() == b"0")
    }

    /// Removes the link, if it is ours, and the program behind it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_link(&self) -> Result<(), Error> {
        let links = Links::open()?;
        if let Some(link) = links.find(&self.interface)?
            && self.kind_if_ours(&link).is_some()
        {
            self.remove(&links, &link)?;
        }
        program::reap();
        Ok(())
    }

    /// Makes this the one peer, with a new session, and begins its handshake. The link stays.
    ///
    /// A server takes one handshake of us in 20 ms (INITIATIONS_PER_SECOND of the kernel's
    /// WireGuard), and WireGuard repeats one only after 5 s: leave that much between two calls. It
    /// takes none that is dated before the last, so a clock set back costs the tunnel.
    ///
    /// # Errors
    /// Without the link; if WireGuard refuses.
    pub fn set_peer(&self, candidate: Candidate) -> Result<(), Error> {
        let (_, kind) = self.ours()?;
        let peer = self.peer(candidate)?;
        match kind {
            Kind::Userspace => uapi::set_only_peer(&self.interface, &peer)
                .map_err(|error| self.userspace(error))?,
            Kind::Kernel => {
                let api = WGApi::<Kernel>::new(&self.interface)?;
                for present in api.read_interface_data()?.peers.keys() {
                    api.remove_peer(present)?;
                }
                api.configure_peer(&peer)?;
            }
        }
        // Something must be sent for a handshake to begin, unless there are keepalives, and with
        // some programs even then. If this cannot be, the next packet will do.
        let _ = self.probe();
        Ok(())
    }

    /// Reads the peer's state; `None` without a link of ours.
    ///
    /// # Errors
    /// If WireGuard does not answer.
    pub fn read(&self) -> Result<Option<Reading>, Error> {
        let (_, kind) = match self.ours() {
            Err(Error::NoLink(_)) => return Ok(None),
            ours => ours?,
        };
        let host = self.host(kind)?;
        let mut reading = Reading { candidate: None, handshake_age: None, received: 0, sent: 0 };
        // Somebody added a peer: then it is not what was configured.
        let [peer] = host.peers.values().collect::<Vec<_>>()[..] else {
            return Ok(Some(reading));
        };
        reading.candidate = self.candidate(peer);
        reading.handshake_age = peer.last_handshake.and_then(|at| self.clock.age(at));
        (reading.received, reading.sent) = (peer.rx_bytes, peer.tx_bytes);
        Ok(Some(reading))
    }

    /// Sends one small packet, or two, into the tunnel that the server answers itself; nobody
    /// beyond it gets them. The answer is seen as growth of [`Reading::received`]. Without a
    /// session a handshake begins.
    ///
    /// # Errors
    /// If nothing could be sent: no link, no address, no route, or forbidden by a firewall.
    pub fn probe(&self) -> Result<(), Error> {
        let allowed: Vec<IpNet> =
            self.servers.iter().flat_map(|server| server.allowed_ips.iter().copied()).collect();
        probe::send(&self.interface, &self.addresses, &self.dns, &allowed).map_err(Error::Probe)
    }

    fn ours(&self) -> Result<(netlink::Link, Kind), Error> {
        let link = Links::open()?.find(&self.interface)?;
        link.and_then(|link| self.kind_if_ours(&link).map(|kind| (link, kind)))
            .ok_or_else(|| Error::NoLink(self.interface.clone()))
    }

    /// A kernel link of this name is taken for ours, as the rules take it. A tun link could be
    /// anybody's: its process must serve our socket.
    fn kind_if_ours(&self, link: &netlink::Link) -> Option<Kind> {
        match link.kind.as_deref() {
            Some("wireguard") if self.backend != Backend::Userspace => Some(Kind::Kernel),
            Some("tun") if self.backend != Backend::Kernel => {
                program::owner(&self.interface).map(|_| Kind::Userspace)
            }
            _ => None,
        }
    }

    /// The link of ours that is there and answers. What blocks the name otherwise makes way.
    fn adopt(&self, links: &Links) -> Result<Option<(netlink::Link, Kind)>, Error> {
        if let Some(link) = links.with_altname(&self.interface)? {
            let altname = &self.interface;
            tracing::warn!(link = ?link.name, altname, "a link had the tunnel's name besides");
            links.remove_altname(&link, &self.interface)?;
        }
        self.end_renamed();
        let Some(link) = links.find(&self.interface)? else { return Ok(None) };
        match self.kind_if_ours(&link) {
            // The kernel does not hang: what it refuses, it would refuse of a new link, too.
            Some(Kind::Kernel) => Ok(Some((link, Kind::Kernel))),
            Some(Kind::Userspace) => match self.host(Kind::Userspace) {
                Ok(_) => Ok(Some((link, Kind::Userspace))),
                Err(error) => {
                    tracing::warn!(link = link.name, %error, "making the tunnel's link anew");
                    self.remove(links, &link).map(|()| None)
                }
            },
            None if self.has_our_key(&link) => {
                tracing::info!(kind = link.kind, "the tunnel's link is of another backend");
                self.remove(links, &link).map(|()| None)
            }
            None => self.put_aside(links, &link).map(|()| None),
        }
    }

    /// Ends our program if somebody gave its link another name: it still serves our socket.
    fn end_renamed(&self) {
        if program::owner(&self.interface).is_none()
            && self.host(Kind::Userspace).is_ok_and(|host| self.is_our_key(&host))
        {
            program::end(&self.interface, true);
        }
    }

    /// As when somebody gave our link another name. Two devices with one key would take the session
    /// from each other, and only one can have the port.
    fn delete_others_with_our_key(&self, links: &Links) -> Result<(), Error> {
        for link in other_wireguards(&links.all()?, &self.interface) {
            let host = WGApi::<Kernel>::new(&link.name).and_then(|api| api.read_interface_data());
            if host.is_ok_and(|host| self.is_our_key(&host)) {
                tracing::warn!(link = link.name, "another link has the tunnel's key: deleting it");
                links.delete(link)?;
            }
        }
        Ok(())
    }

    /// Whether another backend's link of our name was ours.
    fn has_our_key(&self, link: &netlink::Link) -> bool {
        let kind = match link.kind.as_deref() {
            Some("wireguard") => Kind::Kernel,
            Some("tun") if program::owner(&self.interface).is_some() => Kind::Userspace,
            _ => return false,
        };
        self.host(kind).is_ok_and(|host| self.is_our_key(&host))
    }

    fn put_aside(&self, links: &Links, link: &netlink::Link) -> Result<(), Error> {
        const MOST: u32 = 100;
        let mut number = 1;
        loop {
            let name = name_aside(&self.interface, number);
            match links.rename(link, &name) {
                Ok(()) => {
                    tracing::warn!(
                        link = link.name,
                        kind = link.kind,
                        renamed = name,
                        "a foreign link had the tunnel's name"
                    );
                    program::move_socket(&self.interface, &name);
                    return Ok(());
                }
                Err(error) if error.errno() == Some(nix::errno::Errno::EEXIST) && number < MOST => {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn create(&self, links: &Links) -> Result<(netlink::Link, Kind), Error> {
        let kind = match self.backend {
            Backend::Userspace => Kind::Userspace,
            Backend::Kernel | Backend::Auto if links.create_wireguard(&self.interface)? => {
                Kind::Kernel
            }
            Backend::Auto => Kind::Userspace,
            Backend::Kernel => return Err(Error::NotInKernel),
        };
        if kind == Kind::Userspace {
            let program = self.program.clone().map_or_else(program::find, Ok)?;
            let process = program::start(&program, &self.interface)?;
            tracing::info!(?program, process, "started a userspace WireGuard");
        }
        // Meanwhile another link may have taken the name, a network card even: ours alone may be
        // given the tunnel's addresses.
        let ours = |link: &netlink::Link| self.kind_if_ours(link) == Some(kind);
        let link = links.find(&self.interface)?.filter(ours);
        Ok((link.ok_or_else(|| Error::NoLink(self.interface.clone()))?, kind))
    }

    fn remove(&self, links: &Links, link: &netlink::Link) -> Result<(), Error> {
        if link.kind.as_deref() == Some("tun") {
            program::end(&self.interface, false);
        }
        links.delete(link)
    }

    /// Sets key, mark and port if they are not so: setting them ends every session.
    fn configure(&self, kind: Kind) -> Result<(), Error> {
        let present = self.host(kind)?;
        let port_fits = self.listen_port == 0 || self.listen_port == present.listen_port;
        if port_fits && present.fwmark == Some(self.mark) && self.is_our_key(&present) {
            return Ok(());
        }
        let private_key = self.private_key.as_ref().ok_or(Error::NotConfigured("private key"))?;
        match kind {
            Kind::Userspace => {
                let key = key::Key::new(*private_key.expose());
                let mut host = Host::new(self.listen_port, key);
                host.fwmark = Some(self.mark);
                uapi::set_host(&self.interface, &host).map_err(|error| self.userspace(error))
            }
            Kind::Kernel => {
                let mut settings = InterfaceConfiguration {
                    name: self.interface.clone(),
                    prvkey: private_key.expose_base64().to_string(),
                    addresses: Vec::new(),
                    port: self.listen_port,
                    peers: Vec::new(),
                    mtu: None,
                    fwmark: Some(self.mark),
                };
                // Flushes the addresses, too; they come back after.
                let outcome = WGApi::<Kernel>::new(&self.interface)
                    .and_then(|api| api.configure_interface(&settings));
                settings.prvkey.zeroize();
                Ok(outcome?)
            }
        }
    }

    fn host(&self, kind: Kind) -> Result<Host, Error> {
        match kind {
            Kind::Userspace => uapi::get(&self.interface).map_err(|error| self.userspace(error)),
            Kind::Kernel => Ok(WGApi::<Kernel>::new(&self.interface)?.read_interface_data()?),
        }
    }

    fn is_our_key(&self, host: &Host) -> bool {
        match (&host.private_key, &self.private_key) {
            (Some(theirs), Some(ours)) => same_key(theirs, ours),
            _ => false,
        }
    }

    fn peer(&self, candidate: Candidate) -> Result<Peer, Error> {
        let server =
            self.servers.get(candidate.server).ok_or(Error::NotConfigured("such server"))?;
        let public = server.public_key.as_ref().ok_or(Error::NotConfigured("public key"))?;
        let mut peer = Peer::new(key::Key::new(*public.as_bytes()));
        let preshared = server.preshared_key.as_ref();
        peer.preshared_key = preshared.map(|key| key::Key::new(*key.expose()));
        peer.endpoint = Some(candidate.endpoint);
        peer.persistent_keepalive_interval = server.persistent_keepalive;
        let mask = |net: &IpNet| IpAddrMask::new(net.network(), net.prefix_len());
        peer.allowed_ips = server.allowed_ips.iter().map(mask).collect();
        Ok(peer)
    }

    /// The endpoint must be a configured one, too: the lock lets no other through.
    fn candidate(&self, peer: &Peer) -> Option<Candidate> {
        let endpoint = peer.endpoint?;
        let is_it = |server: &Server| {
            let key = server.public_key.as_ref().map(|key| key.as_bytes().as_slice());
            key == Some(peer.public_key.as_slice()) && server.endpoints.contains(&endpoint)
        };
        let server = self.servers.iter().position(is_it)?;
        Some(Candidate { server, endpoint })
    }

    fn userspace(&self, error: std::io::Error) -> Error {
        Error::Userspace { interface: self.interface.clone(), error }
    }
}

/// Links of kernel WireGuard under any name but this.
fn other_wireguards<'a>(
    all: &'a [netlink::Link],
    name: &str,
) -> impl Iterator<Item = &'a netlink::Link> {
    all.iter().filter(move |it| it.kind.as_deref() == Some("wireguard") && it.name != name)
}

/// Like "wg0-foreign1", cut to what a name may hold.
fn name_aside(interface: &str, number: u32) -> String {
    let suffix = format!("-foreign{number}");
    let kept = interface.len().min(LONGEST_NAME.saturating_sub(suffix.len()));
    format!("{}{suffix}", interface.get(..kept).unwrap_or_default())
}

/// Whether two private keys have one public key. Takes the same time wherever they differ.
fn same_key(theirs: &key::Key, ours: &Key) -> bool {
    /// Bits that X25519 sets or clears (RFC 7748, section 5); the kernel and wireguard-go give a
    /// key back with them so, others as it was.
    const FREE: [(usize, u8); 2] = [(0, 0b1111_1000), (31, 0b0011_1111)];
    let mut differences: [u8; 32] =
        std::array::from_fn(|at| theirs.as_slice()[at] ^ ours.expose()[at]);
    for (at, mask) in FREE {
        differences[at] &= mask;
    }
    differences.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_x25519_does_not_read_make_no_other_key() {
        let ours = Key::from_base64("/////////////////////////////////////////38=").unwrap();
        let with = |at: usize, bits: u8| {
            let mut bytes = *ours.expose();
            bytes[at] ^= bits;
            key::Key::new(bytes)
        };
        for (at, bits) in [(0, 0), (0, 7), (31, 0x80), (31, 0x40)] {
            assert!(same_key(&with(at, bits), &ours), "{at} {bits}");
        }
        for (at, bits) in [(0, 8), (31, 0x20), (1, 1), (30, 0x80)] {
            assert!(!same_key(&with(at, bits), &ours), "{at} {bits}");
        }
    }

    #[test]
    fn only_wireguard_under_another_name_is_asked_for_its_key() {
        let link = |name: &str, kind: Option<&str>| netlink::Link {
            index: 1,
            name: name.into(),
            kind: kind.map(Into::into),
            up: true,
            running: true,
            mtu: 1420,
            ..netlink::Link::default()
        };
        let all = [
            link("eth0", None),
            link("wg0", Some("wireguard")),
            link("foo", Some("wireguard")),
            link("tun0", Some("tun")),
        ];
        let names: Vec<_> = other_wireguards(&all, "wg0").map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["foo"]);
    }

    #[test]
    fn a_name_aside_fits() {
        assert_eq!(name_aside("wg0", 1), "wg0-foreign1");
        assert_eq!(name_aside("exactly15-bytes", 1), "exactl-foreign1");
        assert_eq!(name_aside("exactly15-bytes", 42), "exact-foreign42");
    }
}
