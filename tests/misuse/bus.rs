//! A system bus of our own, at the usual place of the private /run, with the packaged policy.

use std::path::Path;
use std::process::{Command, Stdio};

use killswitch::lab::harness::eventually;
use killswitch::lab::host::Process;
use killswitch::lab::{Context, Host, Result};

pub const SOCKET: &str = "/run/dbus/system_bus_socket";

/// As Debian's system.conf, without what starts services.
const CONFIGURATION: &str = r#"<busconfig>
    <type>system</type>
    <listen>unix:path=/run/dbus/system_bus_socket</listen>
    <auth>EXTERNAL</auth>
    <policy context="default">
        <allow user="*"/>
        <deny own="*"/>
        <deny send_type="method_call"/>
        <allow send_type="signal"/>
        <allow send_requested_reply="true" send_type="method_return"/>
        <allow send_requested_reply="true" send_type="error"/>
        <allow receive_type="method_call"/>
        <allow receive_type="method_return"/>
        <allow receive_type="error"/>
        <allow receive_type="signal"/>
        <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    </policy>
    <include>PACKAGED</include>
</busconfig>"#;

/// Kept until dropped.
pub fn start(host: &Host) -> Result<Process> {
    let packaged =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/dbus/org.killswitch1.conf");
    let file = "/run/killswitch-test-bus.conf";
    let text = CONFIGURATION.replace("PACKAGED", &packaged.display().to_string());
    std::fs::write(file, text).during(file)?;
    std::fs::create_dir_all("/run/dbus").during("/run/dbus")?;
    let _ = std::fs::remove_file(SOCKET);
    let mut bus = Command::new("dbus-daemon");
    bus.args(["--nofork", "--nopidfile", "--config-file", file]).stdin(Stdio::null());
    // It tells of every call that it does not pass on.
    bus.stderr(Stdio::null());
    let bus = host.start(bus)?;
    eventually("the bus listens", || Ok(Path::new(SOCKET).exists()))?;
    Ok(bus)
}
