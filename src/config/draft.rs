//! What the files say, value by value, before it is known to make sense together.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::fields::{Fields, Problems};
use super::source::{Place, Placed};
use super::tree::Node;
use super::{
    Allow, Backend, Forward, ForwardMode, Inbound, Key, LinkPattern, Lock, MessageShape, Protocol,
    PublicKey, TunnelKind, schema, value,
};

/// Bridges that stay on the machine, unless configured.
const INTERNAL: &[&str] = &["docker0", "br-*", "virbr*", "podman*"];
/// Guests' ports of those bridges, unless configured.
const INTERNAL_PORTS: &[&str] = &["veth*", "vnet*", "vb-*"];

pub(super) type List<T> = Placed<Vec<Placed<T>>>;

pub(super) struct Draft {
    pub(super) lock: Lock,
    pub(super) tunnel: TunnelDraft,
    pub(super) servers: Vec<ServerDraft>,
    pub(super) allow: AllowDraft,
    pub(super) forward: Forward,
}

pub(super) struct TunnelDraft {
    /// Where to point at when something is missing.
    pub(super) place: Place,
    pub(super) kind: TunnelKind,
    pub(super) interface: Option<Placed<String>>,
    pub(super) config: Option<Placed<PathBuf>>,
    pub(super) private_key_file: Option<Placed<PathBuf>>,
    pub(super) private_key: Option<Placed<Key>>,
    pub(super) addresses: Option<List<IpNet>>,
    pub(super) dns: Option<List<IpAddr>>,
    pub(super) dns_search: Vec<String>,
    pub(super) mtu: Option<Placed<u16>>,
    pub(super) mark: Option<Placed<u32>>,
    pub(super) listen_port: Option<Placed<u16>>,
    pub(super) backend: Backend,
    pub(super) connect_at_start: bool,
    pub(super) keep_at_stop: bool,
}

pub(super) struct ServerDraft {
    /// Where to point at when something is missing.
    pub(super) place: Place,
    pub(super) name: Option<Placed<String>>,
    pub(super) endpoints: Option<List<SocketAddr>>,
    pub(super) protocol: Option<Placed<Protocol>>,
    pub(super) public_key: Option<Placed<PublicKey>>,
    pub(super) preshared_key_file: Option<Placed<PathBuf>>,
    pub(super) preshared_key: Option<Placed<Key>>,
    pub(super) allowed_ips: Option<List<IpNet>>,
    pub(super) persistent_keepalive: Option<Placed<u16>>,
    pub(super) message_shape: Option<Placed<MessageShape>>,
}

pub(super) struct AllowDraft {
    pub(super) dhcp: bool,
    pub(super) lan: Vec<Placed<IpNet>>,
    pub(super) lan_dns: Vec<Placed<IpAddr>>,
    pub(super) ntp: Vec<Placed<IpAddr>>,
    pub(super) inbound: Vec<Inbound>,
    pub(super) internal: Vec<Placed<LinkPattern>>,
    pub(super) internal_ports: Vec<Placed<LinkPattern>>,
    defaults: (bool, bool),
}

impl AllowDraft {
    pub(super) fn finish(&self) -> Allow {
        let patterns = |configured: &[Placed<LinkPattern>], default: bool, standard: &[&str]| {
            if default {
                standard.iter().filter_map(|text| value::link_pattern(text).ok()).collect()
            } else {
                values(configured)
            }
        };
        Allow {
            dhcp: self.dhcp,
            lan: values(&self.lan),
            lan_dns: values(&self.lan_dns),
            ntp: values(&self.ntp),
            inbound: self.inbound.clone(),
            internal: patterns(&self.internal, self.defaults.0, INTERNAL),
            internal_ports: patterns(&self.internal_ports, self.defaults.1, INTERNAL_PORTS),
        }
    }
}

/// The values without their places.
pub(super) fn values<T: Clone>(placed: &[Placed<T>]) -> Vec<T> {
    placed.iter().map(|item| item.value.clone()).collect()
}

/// Reads the merged files.
pub(super) fn read(root: &Node, problems: &Problems) -> Draft {
    let fields = Fields::new(root, schema::ROOT, problems);
    let lock = fields.table("lock", schema::LOCK);
    let forward = fields.table("forward", schema::FORWARD);
    let modes = [("drop", ForwardMode::Drop), ("tunnel", ForwardMode::Tunnel)];
    Draft {
        lock: Lock {
            at_boot: lock.boolean("at_boot", true),
            egress_guard: lock.boolean("egress_guard", true),
        },
        tunnel: read_tunnel(&fields, root, problems),
        servers: fields.items("server").iter().map(|item| read_server(item, problems)).collect(),
        allow: read_allow(&fields.table("allow", schema::ALLOW), problems),
        forward: Forward {
            mode: forward.choice("mode", &modes).map_or(ForwardMode::Drop, |mode| mode.value),
        },
    }
}

fn read_tunnel(fields: &Fields<'_>, root: &Node, problems: &Problems) -> TunnelDraft {
    let tunnel = fields.table("tunnel", schema::TUNNEL);
    if fields.key_place("tunnel").is_none() {
        problems.add(
            root.place.problem("no [tunnel]").help(format!("write at least\n{}", super::MINIMAL)),
        );
    }
    let kinds = [("wireguard", TunnelKind::Wireguard), ("external", TunnelKind::External)];
    let backends =
        [("auto", Backend::Auto), ("kernel", Backend::Kernel), ("userspace", Backend::Userspace)];
    TunnelDraft {
        place: fields.key_place("tunnel").unwrap_or(&root.place).clone(),
        kind: tunnel.choice("kind", &kinds).map_or(TunnelKind::Wireguard, |kind| kind.value),
        interface: tunnel.parsed("interface", value::link_name),
        config: tunnel.parsed("config", value::path),
        private_key_file: tunnel.parsed("private_key_file", value::path),
        private_key: None,
        addresses: tunnel.list("addresses", value::interface_address),
        dns: tunnel.list("dns", value::resolver),
        dns_search: Vec::new(),
        mtu: tunnel.integer("mtu", super::MTU_RANGE),
        mark: tunnel.integer("fwmark", 1..=i64::from(u32::MAX)),
        listen_port: tunnel.integer("listen_port", 1..=65535),
        backend: tunnel.choice("backend", &backends).map_or(Backend::Auto, |backend| backend.value),
        connect_at_start: tunnel.boolean("connect_at_start", true),
        keep_at_stop: tunnel.boolean("keep_at_stop", true),
    }
}

fn read_server(node: &Node, problems: &Problems) -> ServerDraft {
    let server = Fields::new(node, schema::SERVER, problems);
    let shapes = [("wireguard", MessageShape::Wireguard), ("any", MessageShape::Any)];
    ServerDraft {
        place: node.place.clone(),
        name: server.parsed("name", value::server_name),
        endpoints: server.list("endpoints", value::endpoint),
        protocol: server.choice("protocol", PROTOCOLS),
        public_key: server.parsed("public_key", value::public_key),
        preshared_key_file: server.parsed("preshared_key_file", value::path),
        preshared_key: None,
        allowed_ips: server.list("allowed_ips", value::network),
        persistent_keepalive: server.integer("persistent_keepalive", 0..=65535),
        message_shape: server.choice("message_shape", &shapes),
    }
}

pub(super) const PROTOCOLS: &[(&str, Protocol)] = &[("udp", Protocol::Udp), ("tcp", Protocol::Tcp)];

fn read_allow(allow: &Fields<'_>, problems: &Problems) -> AllowDraft {
    fn items<T>(list: Option<List<T>>) -> Vec<Placed<T>> {
        list.map_or(Vec::new(), |list| list.value)
    }
    AllowDraft {
        dhcp: allow.boolean("dhcp", true),
        lan: items(allow.list("lan", value::local_network)),
        lan_dns: items(allow.list("lan_dns", value::host_address)),
        ntp: items(allow.list("ntp", value::host_address)),
        inbound: allow
            .items("inbound")
            .iter()
            .flat_map(|item| read_inbound(item, problems))
            .collect(),
        internal: items(allow.list("internal", value::link_pattern)),
        internal_ports: items(allow.list("internal_ports", value::link_pattern)),
        defaults: (
            allow.key_place("internal").is_none(),
            allow.key_place("internal_ports").is_none(),
        ),
    }
}

/// One [`Inbound`] for each network of the entry.
fn read_inbound(node: &Node, problems: &Problems) -> Vec<Inbound> {
    let entry = Fields::new(node, schema::INBOUND, problems);
    let missing = |name: &&&str| entry.key_place(name).is_none();
    if let Some(name) = schema::INBOUND.iter().find(missing).filter(|_| entry.is_table()) {
        problems.add(
            node.place
                .problem(format!("\"{name}\" is missing"))
                .help("write e.g. { proto = \"tcp\", port = 22, from = [\"192.168.1.0/24\"] }"),
        );
    }
    let protocol = entry.choice("proto", PROTOCOLS);
    let port = entry.integer("port", 1..=65535);
    let from = entry.list("from", value::network);
    let (Some(protocol), Some(port), Some(from)) = (protocol, port, from) else {
        return Vec::new();
    };
    if entry.items("from").is_empty() {
        problems.add(
            from.place
                .problem("names no network, so nothing could come in")
                .help("write the networks that may reach the service, e.g. [\"192.168.1.0/24\"]"),
        );
    }
    let inbound = |from: &Placed<IpNet>| Inbound {
        protocol: protocol.value,
        port: port.value,
        from: from.value,
    };
    from.value.iter().map(inbound).collect()
}
