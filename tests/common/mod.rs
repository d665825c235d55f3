//! A laboratory whose client has a configuration and is locked by the real program.
//!
//! Every threat is shown twice, in the same laboratory and by the same sender: without the lock it
//! must be seen on the wire, with the lock it must not.

// Each test target uses a part of it.
#![allow(dead_code)]

use std::fs::{self, Permissions};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use killswitch::config;
use killswitch::lab::addresses::*;
use killswitch::lab::harness::eventually;
use killswitch::lab::{Capture, Context, Error, Expectation, Host, Lab, Report, Result};
use killswitch::policy::Policy;
use nix::sys::socket::{setsockopt, sockopt};

/// What every sender puts into its packets, followed by its own name: so they are found wherever
/// and however wrapped they leave.
pub const CANARY: &str = "killswitch-canary:";

/// The exit status of `status`.
pub const BLOCKED: i32 = 10;
/// The exit status of `status`.
pub const OPEN: i32 = 20;
/// The exit status of `status`.
pub const DAMAGED: i32 = 30;

/// A laboratory and the client's configuration, in files of a private tmpfs.
pub struct LockedLab {
    /// The laboratory; not locked before [`LockedLab::lock`].
    pub lab: Lab,
    /// What may leave.
    pub expectation: Expectation,
    directory: tempfile::TempDir,
}

/// What left the client.
pub struct Seen {
    /// As the decoder judged it.
    pub report: Report,
    /// Every frame, allowed or not, one after the other, each after a header of pcap.
    pub bytes: Vec<u8>,
}

/// What `status --json` said.
#[derive(Debug)]
pub struct Status {
    /// The exit status.
    pub code: i32,
    /// The document.
    pub json: serde_json::Value,
}

impl LockedLab {
    /// With both servers of the laboratory in the configuration, and nothing else allowed.
    pub fn new() -> Result<Self> {
        Self::with("")
    }

    /// With more in the configuration, from a table's head on.
    pub fn with(more: &str) -> Result<Self> {
        // /run is the harness' own tmpfs.
        let directory = tempfile::tempdir_in("/run").during("/run")?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).during("/run")?;
        let lab = Lab::new()?;
        let expectation = Expectation::of(&lab);
        let it = LockedLab { lab, expectation, directory };
        it.write("private.key", &Base64::encode_string(&it.lab.client_keys.private))?;
        it.configure(more)?;
        it.know_the_neighbours()?;
        Ok(it)
    }

    /// With nothing but table `inet killswitch`: neither the egress guard nor, since another program
    /// brings the tunnel up, the routing guard can hide what the table lets through.
    pub fn table_alone(more: &str) -> Result<Self> {
        let it = Self::new()?;
        let [one, two] = &it.lab.servers;
        let text = format!(
            "[lock]\n\
             egress_guard = false\n\
             [tunnel]\n\
             kind = \"external\"\n\
             interface = \"{TUNNEL_LINK}\"\n\
             addresses = [\"{TUNNEL_V4}/32\", \"{TUNNEL_V6}/128\"]\n\
             [[server]]\n\
             name = \"both\"\n\
             endpoints = [\"{}\", \"{}\"]\n\
             {more}",
            one.endpoint_v4, two.endpoint_v4
        );
        it.write("killswitch.toml", &text)?;
        Ok(it)
    }

    /// A file in the configuration's directory; only root may read it.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, content).during(path.display())?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).during(path.display())?;
        Ok(path)
    }

    /// Writes the configuration anew, with more from a table's head on.
    pub fn configure(&self, more: &str) -> Result<()> {
        self.write("killswitch.toml", &self.configuration(more)).map(drop)
    }

    /// The configuration's text: the laboratory's tunnel and servers, and more.
    pub fn configuration(&self, more: &str) -> String {
        let mut text = format!(
            "[tunnel]\n\
             interface = \"{TUNNEL_LINK}\"\n\
             private_key_file = \"private.key\"\n\
             addresses = [\"{TUNNEL_V4}/32\", \"{TUNNEL_V6}/128\"]\n\
             dns = [\"{TUNNEL_GATEWAY_V4}\"]\n"
        );
        for (server, name) in self.lab.servers.iter().zip(["one", "two"]) {
            text += &format!(
                "[[server]]\n\
                 name = \"{name}\"\n\
                 endpoints = [\"{}\", \"{}\"]\n\
                 public_key = \"{}\"\n\
                 allowed_ips = [\"0.0.0.0/0\", \"::/0\"]\n",
                server.endpoint_v4,
                server.endpoint_v6,
                Base64::encode_string(&server.keys.public)
            );
        }
        text + more
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("killswitch.toml")
    }

    /// What the configuration file asks for.
    pub fn policy(&self) -> Result<Policy> {
        let config = config::load(&self.config()).during("configuration")?;
        Ok(Policy::from_config(&config))
    }

    /// Runs the real program in the client.
    pub fn killswitch(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.config();
        let mut all = vec!["--config", path(&config)?];
        all.extend(arguments);
        self.lab.client.output(env!("CARGO_BIN_EXE_killswitch"), &all)
    }

    /// Runs the real program in the client; it must succeed. What it printed, then what it warned.
    pub fn killswitch_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.killswitch(arguments)?;
        let text = words(&output);
        match output.status.success() {
            true => Ok(text),
            false => Err(Error::new(format!("killswitch {arguments:?}: {text}"))),
        }
    }

    /// Locks by the real program; nothing may be weaker than asked. Then waits until all that was
    /// sent before is past the wire.
    pub fn lock(&self) -> Result<()> {
        let said = self.killswitch_ok(&["lock"])?;
        if said.contains("degraded") {
            return Err(Error::new(format!("killswitch lock: {said}")));
        }
        self.flush()
    }

    /// Opens everything by the real program.
    pub fn unlock(&self) -> Result<()> {
        self.killswitch_ok(&["unlock", "--yes"]).map(drop)
    }

    /// Asks the real program for the state.
    pub fn status(&self) -> Result<Status> {
        let output = self.killswitch(&["--json", "status"])?;
        let code = output.status.code().unwrap_or(-1);
        let json = serde_json::from_slice(&output.stdout).during(words(&output))?;
        Ok(Status { code, json })
    }

    /// The state must have this exit status.
    pub fn expect_status(&self, code: i32) -> Result<Status> {
        let status = self.status()?;
        match status.code == code {
            true => Ok(status),
            false => Err(Error::new(format!("status is not {code}: {status:?}"))),
        }
    }

    /// What leaves the client while `act` runs, and until the wire has carried one more packet
    /// that may leave: so a capture that sees nothing is no proof.
    pub fn during(&self, act: impl FnOnce(&Lab) -> Result<()>) -> Result<Seen> {
        self.watch(act, |capture| self.pass_a_permitted_packet(capture))
    }

    /// As [`LockedLab::during`], but nothing need leave afterwards: for positive controls in which
    /// something else blocks the permitted packet too.
    pub fn during_unchecked(&self, act: impl FnOnce(&Lab) -> Result<()>) -> Result<Seen> {
        self.watch(act, |_| Ok(()))
    }

    fn watch(
        &self,
        act: impl FnOnce(&Lab) -> Result<()>,
        end: impl FnOnce(&Capture) -> Result<()>,
    ) -> Result<Seen> {
        let file = self.directory.path().join("wire.pcap");
        let capture = Capture::start_with_pcap(&self.lab, self.expectation.clone(), &file)?;
        act(&self.lab)?;
        // The kernel's own answers and look-ups may follow a little later.
        std::thread::sleep(Duration::from_millis(200));
        end(&capture)?;
        let report = capture.stop()?;
        let bytes = fs::read(&file).during(file.display())?;
        Ok(Seen { report, bytes })
    }

    /// The positive control for what may come late: `act` is repeated until this canary, or a
    /// leak of this kind, is seen.
    pub fn until_shown(&self, what: &str, act: impl Fn(&Lab) -> Result<()>) -> Result<()> {
        let mut last = String::new();
        eventually(&format!("{what} on the wire"), || {
            let seen = self.during(&act)?;
            last = seen.report.summary(20);
            Ok(seen.must_show(what).is_ok())
        })
        .during(last)
    }

    /// Waits until all that was sent before is past the wire.
    pub fn flush(&self) -> Result<()> {
        let capture = Capture::start(&self.lab, self.expectation.clone())?;
        self.pass_a_permitted_packet(&capture)
    }

    fn pass_a_permitted_packet(&self, capture: &Capture) -> Result<()> {
        let count = || capture.report().allowed.get("WireGuard to a server").copied().unwrap_or(0);
        let before = count();
        eventually("a packet that may leave is seen on the wire", || {
            self.lab.client.run(|| send_marked(self.lab.servers[1].endpoint_v4))??;
            std::thread::sleep(Duration::from_millis(5));
            Ok(count() > before)
        })
    }

    /// Without this a packet may wait for an answer to ARP, and leave when nobody looks any more.
    fn know_the_neighbours(&self) -> Result<()> {
        let addresses = [
            ROUTER_V4.to_string(),
            ROUTER_V6.to_string(),
            NEIGHBOUR_V4.to_string(),
            NEIGHBOUR_V6.to_string(),
            INTERNET_V4.to_string(),
            INTERNET_V6.to_string(),
        ];
        for address in &addresses {
            reaches(&self.lab.client, address)?;
        }
        Ok(())
    }
}

impl Seen {
    /// Whether any frame holds these bytes.
    pub fn holds(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len()).any(|window| window == needle)
    }

    /// Whether a leak of this kind was seen.
    pub fn has_leak(&self, class: &str) -> bool {
        self.report.leaked.keys().any(|leak| leak.contains(class))
    }

    /// The positive control: this canary, or a leak of this kind, must be there.
    pub fn must_show(&self, what: &str) -> Result<()> {
        if self.holds(&canary(what)) || self.has_leak(what) {
            return Ok(());
        }
        Err(Error::new(format!("{what} was not seen on the wire: {}", self.report.summary(20))))
    }

    /// The negative control: before anything is done, this canary must not be there.
    pub fn must_be_silent_of(&self, what: &str) -> Result<()> {
        match self.holds(&canary(what)) {
            true => Err(Error::new(format!("{what} was seen on the wire before its cause"))),
            false => Ok(()),
        }
    }

    /// Nothing may have leaked, and no canary may be in any frame.
    pub fn must_be_clean(&self) -> Result<()> {
        if self.report.leaked_total() > 0 {
            return Err(Error::new(format!("leaked: {}", self.report.summary(20))));
        }
        if self.holds(CANARY.as_bytes()) {
            return Err(Error::new("a canary is in a frame that may leave"));
        }
        if self.report.lost > 0 {
            return Err(Error::new(format!("{} frames were not seen", self.report.lost)));
        }
        Ok(())
    }
}

/// The bytes that a sender of this name puts into its packets.
pub fn canary(name: &str) -> Vec<u8> {
    format!("{CANARY}{name};").into_bytes()
}

/// A packet that may leave: marked, to a server, in WireGuard's shape.
fn send_marked(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").during("udp")?;
    setsockopt(&socket, sockopt::Mark, &MARK).during("SO_MARK")?;
    let mut message = [0; 148];
    message[0] = 1;
    socket.send_to(&message, to).during(format!("a marked packet to {to}")).map(drop)
}

/// What a program printed, then what it warned.
pub fn words(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part));
    text.concat().trim().to_owned()
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::new("a path that is not text"))
}

/// Waits until a host answers: a link may lose the first packets.
pub fn reaches(host: &Host, address: &str) -> Result<()> {
    eventually("an answer to a ping", || {
        Ok(host.output("ping", &["-c1", "-W1", address])?.status.success())
    })
}
