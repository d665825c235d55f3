//! Links under the tunnel's name that are not ours.

use killswitch::engine::TunnelLink;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::Outcome;
use killswitch::wireguard::Device;

use crate::tunnel::Tunnel;

pub fn a_foreign_link_is_put_aside() -> Outcome {
    let tunnel = Tunnel::new()?;
    let client = &tunnel.lab.client;
    let foreign = [
        "link add wg0 type bridge",
        "link add wg0 type veth peer name other0",
        "link add wg0 link eth0 type macvlan",
        "link add wg0 type ifb",
    ];
    for (index, command) in foreign.into_iter().enumerate() {
        client.ip(&format!("{command}\nlink set wg0 up"))?;
        assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Foreign, "{command}");
        assert!(tunnel.ask(Device::read)?.is_none());
        // Not ours, so not removed.
        tunnel.ask(Device::remove_link)?;
        assert!(client.has_link("wg0")?);
        tunnel.ensure()?;
        assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Up);
        let aside =
            client.command("ip", &["link", "show", &format!("wg0-foreign{}", index + 1)])?;
        assert!(aside.contains(",UP"), "{aside}");
        tunnel.connect(tunnel.first())?;
        tunnel.ask(Device::remove_link)?;
    }
    Ok(())
}

/// The look-alike: of the right kind, under the right name.
pub fn a_foreign_tun_link_is_put_aside() -> Outcome {
    let tunnel = Tunnel::new()?;
    let make = || {
        let mut settings = tun::Configuration::default();
        settings.tun_name(TUNNEL_LINK).up();
        tun::create(&settings)
    };
    let impostor = tunnel.lab.client.run(make)??;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Foreign);
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    assert!(tunnel.lab.client.has_link("wg0-foreign1")?);
    // Ours still serves the socket, but under another name; and there is an impostor again.
    tunnel.lab.client.ip(&format!(
        "link set {TUNNEL_LINK} down\nlink set {TUNNEL_LINK} name mine\nlink set mine up"
    ))?;
    let second = tunnel.lab.client.run(make)??;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Foreign);
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Up);
    // Two with one key would take the session from each other.
    tunnel.process()?;
    assert!(!tunnel.lab.client.has_link("mine")?);
    drop((impostor, second));
    Ok(())
}

pub fn an_alternative_name_makes_way() -> Outcome {
    let tunnel = Tunnel::new()?;
    tunnel
        .lab
        .client
        .command("ip", &["link", "property", "add", "dev", CLIENT_LINK, "altname", TUNNEL_LINK])?;
    assert_eq!(tunnel.ask(Device::link)?.0, TunnelLink::Absent);
    tunnel.ensure()?;
    tunnel.connect(tunnel.first())?;
    let link = tunnel.lab.client.command("ip", &["link", "show", CLIENT_LINK])?;
    assert!(!link.contains("altname"), "{link}");
    Ok(())
}
