use std::collections::BTreeMap;
use std::io;

use nix::sys::socket::LinkAddr;

/// Each link's own `sockaddr_ll`, by the link's name; links without a hardware address are missing.
///
/// getifaddrs(3) is where safe code gets one from. It asks for all links and addresses: once will do.
///
/// # Errors
/// Those of getifaddrs(3).
pub fn hardware_addresses() -> io::Result<BTreeMap<String, LinkAddr>> {
    let of_link = |it: nix::ifaddrs::InterfaceAddress| {
        Some((it.interface_name, *it.address?.as_link_addr()?))
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(of_link).collect())
}
