//! `leaktest --self-check`: as root and without, and nothing of the machine's network is touched.

use std::process::{Command, Stdio};

use killswitch::lab::harness::{Outcome, Test};
use serde_json::Value;

pub const TESTS: &[Test] = &[
    ("self_check_as_root", self_check_as_root),
    ("self_check_without_privileges", self_check_without_privileges),
];

const PROGRAM: &str = env!("CARGO_BIN_EXE_killswitch");

fn self_check_as_root() -> Outcome {
    checked(Command::new(PROGRAM))
}

/// Where user namespaces are forbidden the program says so, and there is nothing to see.
fn self_check_without_privileges() -> Outcome {
    let program = tempfile::NamedTempFile::new_in("/tmp")?.into_temp_path();
    std::fs::copy(PROGRAM, &program)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut bare = Command::new("setpriv");
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    if map.split_whitespace().nth(2).and_then(|it| it.parse::<u64>().ok()) > Some(65534) {
        bare.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    bare.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(&program);
    checked(bare)
}

fn checked(mut command: Command) -> Outcome {
    let links = || Command::new("ip").args(["-br", "link"]).output().map(|it| it.stdout);
    let before = links()?;
    let output =
        command.args(["--json", "leaktest", "--self-check"]).stdin(Stdio::null()).output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let said: Value =
        serde_json::from_slice(&output.stdout).map_err(|it| format!("{it}: {words}"))?;
    assert_eq!(output.status.code(), Some(0), "{said:#}\n{words}");
    assert_eq!(said["works"], true, "{said:#}");
    let names: Vec<&str> = said["probes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect();
    for name in ["tcp", "quic", "dns", "packet-socket", "forwarded", "old-socket", "ipv6-sources"] {
        assert!(names.contains(&name), "{name} is not checked: {names:?}");
    }
    assert_eq!(before, links()?, "links of this namespace changed");
    Ok(())
}
