//! What a machine finds at /dev/vdb: the package, and a configuration for the laboratory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use killswitch::lab::addresses::*;
use killswitch::lab::setup::server_table;
use killswitch::lab::wireguard::KeyPair;
use killswitch::lab::{Context, Error, Result};

use super::disks;

/// The version of another package with the same program: what is upgraded from.
pub const OLDER: &str = "0.0.1";

/// In the machine.
pub const UNPACK: &str = "mkdir -p /run/payload && tar xf /dev/vdb -C /run/payload";

/// What an administrator does, in the machine.
pub fn install() -> String {
    format!(
        "set -e
         {UNPACK}
         dpkg -i /run/payload/killswitch.deb
         install -m 600 /run/payload/killswitch.toml /etc/killswitch.toml
         install -D -m 600 /run/payload/private.key /etc/killswitch/private.key
         systemctl enable killswitch
         sync"
    )
}

/// Writes the tar file. Keys: the client's, those of both servers.
pub fn write(file: &Path, keys: &[KeyPair; 3], work: &Path) -> Result<()> {
    let directory = work.join("payload");
    std::fs::create_dir_all(&directory).during(directory.display())?;
    let put = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).during(path.display())
    };
    let package = package()?;
    put("killswitch.deb", &std::fs::read(&package).during(package.display())?)?;
    make_older(&package, &directory.join("older.deb"))?;
    put("killswitch.toml", configuration(keys).as_bytes())?;
    put("private.key", format!("{}\n", keys[0].private_text()).as_bytes())?;
    disks::succeed(
        Command::new("tar")
            .args(["--create", "--file"])
            .arg(file)
            .arg("--directory")
            .arg(&directory)
            .arg("."),
    )
}

/// The same package, but for its version.
fn make_older(package: &Path, older: &Path) -> Result<()> {
    let files = older.with_extension("files");
    let _ = std::fs::remove_dir_all(&files);
    disks::succeed(Command::new("dpkg-deb").arg("--raw-extract").args([package, &files]))?;
    let control = files.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).during(control.display())?;
    let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(_) => format!("Version: {OLDER}\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(&control, lines.collect::<String>()).during(control.display())?;
    disks::succeed(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zgzip", "--build"])
            .args([&files, older]),
    )?;
    std::fs::remove_dir_all(&files).during(files.display())
}

/// What `make deb` has built.
fn package() -> Result<std::path::PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/package");
    let files = std::fs::read_dir(&directory).during("target/package: run `make deb` first")?;
    let mut packages: Vec<_> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    packages.pop().ok_or_else(|| Error::new("no package in target/package: run `make deb` first"))
}

fn configuration(keys: &[KeyPair; 3]) -> String {
    let server = |name: &str, v4: Ipv4Addr, v6: Ipv6Addr, keys: &KeyPair| {
        let endpoints = [IpAddr::from(v4), v6.into()].map(|it| SocketAddr::new(it, SERVER_PORT));
        server_table(name, endpoints, keys)
    };
    format!(
        r#"[tunnel]
interface = "{TUNNEL_LINK}"
private_key_file = "/etc/killswitch/private.key"
addresses = ["{TUNNEL_V4}/32", "{TUNNEL_V6}/128"]
mtu = 1420
{}{}"#,
        server("server1", SERVER1_V4, SERVER1_V6, &keys[1]),
        server("server2", SERVER2_V4, SERVER2_V6, &keys[2]),
    )
}
