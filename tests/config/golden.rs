//! One folder per case: `killswitch.toml`, the files it needs, and what is `expected`.
//!
//! `UPDATE_EXPECTED=1` rewrites `expected`.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use killswitch::config::{self, Config, LinkPattern, Notice, check};

#[test]
fn every_folder_gives_what_is_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(cases.len() >= 40, "only {} cases in {}", cases.len(), root.display());
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case)).collect();
    assert!(wrong.is_empty(), "{} cases differ:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

/// What differs, if anything.
fn run(case: &Path) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    copy(case, directory.path());
    let actual = match config::load(&directory.path().join("killswitch.toml")) {
        Ok(config) => summary(&config),
        Err(error) => format!("{error}\n"),
    };
    let actual = actual.replace(directory.path().to_str().unwrap(), "$DIR");
    let expected = case.join("expected");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&expected, &actual).unwrap();
    }
    let wanted = fs::read_to_string(&expected).unwrap_or_default();
    (actual != wanted)
        .then(|| format!("{}\n--- expected\n{wanted}--- actual\n{actual}", case.display()))
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else if entry.file_name() != "expected" {
            fs::copy(entry.path(), &target).unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn summary(config: &Config) -> String {
    let mut text = String::new();
    for file in &config.files {
        writeln!(text, "file {}", file.display()).unwrap();
    }
    let lock = &config.lock;
    writeln!(text, "lock at_boot={} egress_guard={}", lock.at_boot, lock.egress_guard).unwrap();
    tunnel(&mut text, config);
    for server in &config.servers {
        writeln!(text, "server {} {:?} {:?}", server.name, server.protocol, server.message_shape)
            .unwrap();
        writeln!(text, "  endpoints {}", list(&server.endpoints)).unwrap();
        let public = server.public_key.map_or("none".into(), |key| key.to_string());
        let preshared = server.preshared_key.is_some();
        writeln!(text, "  public_key {public} preshared={preshared}").unwrap();
        writeln!(text, "  allowed_ips {}", list(&server.allowed_ips)).unwrap();
        writeln!(text, "  keepalive {:?}", server.persistent_keepalive).unwrap();
    }
    allow(&mut text, config);
    writeln!(text, "forward {:?}", config.forward.mode).unwrap();
    notices(&mut text, "notice", &config.notices);
    notices(&mut text, "warning", &check::warnings(config));
    text
}

fn tunnel(text: &mut String, config: &Config) {
    let tunnel = &config.tunnel;
    writeln!(
        text,
        "tunnel {} {:?} {:?} mark={:#x} private={} connect_at_start={}",
        tunnel.interface,
        tunnel.kind,
        tunnel.backend,
        tunnel.mark,
        tunnel.private_key.is_some(),
        tunnel.connect_at_start
    )
    .unwrap();
    writeln!(text, "  addresses {}", list(&tunnel.addresses)).unwrap();
    writeln!(text, "  dns {} search {}", list(&tunnel.dns), list(&tunnel.dns_search)).unwrap();
    writeln!(text, "  mtu {:?} listen_port {:?}", tunnel.mtu, tunnel.listen_port).unwrap();
}

fn allow(text: &mut String, config: &Config) {
    let allow = &config.allow;
    writeln!(text, "allow dhcp={}", allow.dhcp).unwrap();
    writeln!(
        text,
        "  lan {} dns {} ntp {}",
        list(&allow.lan),
        list(&allow.lan_dns),
        list(&allow.ntp)
    )
    .unwrap();
    for inbound in &allow.inbound {
        writeln!(text, "  inbound {:?} {} {}", inbound.protocol, inbound.port, inbound.from)
            .unwrap();
    }
    let patterns = |patterns: &[LinkPattern]| {
        let shown: Vec<String> = patterns
            .iter()
            .map(|pattern| match pattern {
                LinkPattern::Exact(name) => name.clone(),
                LinkPattern::Prefix(prefix) => format!("{prefix}*"),
            })
            .collect();
        list(&shown)
    };
    let (internal, ports) = (patterns(&allow.internal), patterns(&allow.internal_ports));
    writeln!(text, "  internal {internal} ports {ports}").unwrap();
}

fn notices(text: &mut String, kind: &str, notices: &[Notice]) {
    for notice in notices {
        writeln!(text, "{kind} {}: {}", notice.location, notice.message).unwrap();
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}
