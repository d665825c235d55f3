//! Whether a lock would cut off the SSH session in which it is typed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;

use crate::policy::Policy;
use crate::ruleset::model::{Connection, LinkView, Packet, State, Verdict};
use crate::ruleset::{self, Ruleset};

/// An SSH session: `SSH_CONNECTION` of sshd(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
}

/// This process's SSH session, if the policy would cut it off.
pub fn session_cut_off_by(policy: &Policy) -> Option<Session> {
    session().filter(|session| !session.survives(policy))
}

impl Session {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut end = || Some((address(words.next()?)?, words.next()?.parse().ok()?));
        Some(Session { client: end()?, server: end()? })
    }

    /// Where it comes from.
    pub fn client(&self) -> IpAddr {
        self.client.0
    }

    /// Whether the server's replies may leave.
    fn survives(&self, policy: &Policy) -> bool {
        let through_tunnel =
            policy.tunnel.as_ref().is_some_and(|tunnel| tunnel.addresses.contains(&self.server.0));
        if self.client.0.is_loopback() || through_tunnel {
            return true;
        }
        let ruleset = Ruleset { inet: ruleset::compile(policy), egress: None };
        let reply = Packet {
            ethertype: if self.client.0.is_ipv4() { 0x0800 } else { 0x86dd },
            source: self.server.0,
            destination: self.client.0,
            protocol: 6,
            ports: Some((self.server.1, self.client.1)),
            icmp_type: None,
            later_fragment: false,
            hop_limit: 64,
            payload: Vec::new(),
            mark: 0,
            iif: None,
            oif: Some(LinkView { name: "eth0".into(), kind: None, loopback: false }),
            to_this_machine: false,
            connection: Some(Connection {
                state: State::Established,
                reply: true,
                dnat: false,
                original: (self.server.0, 6, self.server.1),
            }),
        };
        ruleset.judge_sent(&reply).verdict == Verdict::Accept
    }

    /// Its server's reply, as `explain` takes it; `None` if it does not leave this machine.
    pub fn reply(&self) -> Option<BTreeMap<&'static str, String>> {
        let ((client, client_port), (server, server_port)) = (self.client, self.server);
        (!client.is_loopback()).then(|| {
            BTreeMap::from([
                ("out", "eth0".to_owned()),
                ("proto", "tcp".to_owned()),
                ("from", server.to_string()),
                ("to", client.to_string()),
                ("sport", server_port.to_string()),
                ("port", client_port.to_string()),
                ("reply", "true".to_owned()),
            ])
        })
    }

    /// What would happen, and what to write so that it does not.
    pub fn explain(&self) -> String {
        let (client, port) = (self.client.0, self.server.1);
        let length = if client.is_ipv4() { 32 } else { 128 };
        format!(
            "this would cut off your SSH session from {client}\n\
             help: allow it in the configuration:\n\
             \x20     [allow]\n\
             \x20     inbound = [{{ proto = \"tcp\", port = {port}, from = [\"{client}/{length}\"] }}]\n\
             \x20     or say --yes to be cut off"
        )
    }
}

/// A link-local address has its link after it.
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

/// This process's SSH session; looked up once, since the lock waits for it and the evidence asks again.
pub fn session() -> Option<Session> {
    static SESSION: OnceLock<Option<Session>> = OnceLock::new();
    *SESSION.get_or_init(look_up)
}

/// sudo drops the variable: then an ancestor has it.
fn look_up() -> Option<Session> {
    if let Some(session) =
        std::env::var("SSH_CONNECTION").ok().and_then(|text| Session::parse(&text))
    {
        return Some(session);
    }
    let mut process = std::os::unix::process::parent_id();
    let mut buffer = vec![0; 1 << 20];
    // Deep enough for any shell within sudo within tmux; a cycle is impossible, a limit is cheap.
    for _ in 0..32 {
        if process <= 1 {
            return None;
        }
        let folder = Path::new("/proc").join(process.to_string());
        let found = read(&folder.join("environ"), &mut buffer)
            .split(|&byte| byte == 0)
            .filter_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))
            .find_map(|value| Session::parse(&String::from_utf8_lossy(value)));
        if found.is_some() {
            return found;
        }
        process = parent_in(read(&folder.join("stat"), &mut buffer))?;
    }
    None
}

/// As much of a file of /proc as the buffer holds; nothing, if it cannot be read. Such a file has no
/// size to go by, and guessing it piece by piece takes longer than the rest of the look-up.
fn read<'b>(path: &Path, buffer: &'b mut [u8]) -> &'b [u8] {
    let mut length = 0;
    if let Ok(mut file) = File::open(path) {
        while let Ok(more @ 1..) = file.read(&mut buffer[length..]) {
            length += more;
        }
    }
    &buffer[..length]
}

/// The fourth field of /proc/PID/stat, after the name in parentheses (proc(5)).
fn parent_in(stat: &[u8]) -> Option<u32> {
    let stat = String::from_utf8_lossy(stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Inbound, Protocol};

    fn policy_with(inbound: &[(&str, u16)]) -> Policy {
        Policy {
            inbound: inbound
                .iter()
                .map(|(net, port)| Inbound {
                    protocol: Protocol::Tcp,
                    port: *port,
                    from: net.parse().expect("a prefix"),
                })
                .collect(),
            ..Policy::strictest()
        }
    }

    #[test]
    fn a_session_survives_only_where_it_is_allowed() {
        let session = Session::parse("192.168.1.7 50123 192.168.1.2 22").expect("a session");
        assert!(!session.survives(&policy_with(&[])));
        assert!(!session.survives(&policy_with(&[("192.168.1.0/24", 2222)])));
        assert!(!session.survives(&policy_with(&[("192.168.2.0/24", 22)])));
        assert!(session.survives(&policy_with(&[("192.168.1.0/24", 22)])));
        assert!(session.explain().contains("from = [\"192.168.1.7/32\"]"));
        let link_local = Session::parse("fe80::1%eth0 50123 fe80::2%eth0 22").expect("a session");
        assert!(!link_local.survives(&policy_with(&[])));
        assert!(link_local.survives(&policy_with(&[("fe80::/10", 22)])));
    }
}
