//! The way from a path to a configuration: read, merge, follow the files that are named, check.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ipnet::IpNet;

use super::draft::{self, Draft, ServerDraft, TunnelDraft, values};
use super::error::{Error, Location, Problem};
use super::fields::Problems;
use super::source::{Place, Placed, Source};
use super::tree::Node;
use super::value::{self, Complaint};
use super::{
    Config, Key, MINIMAL, MessageShape, Notice, Places, Server, Tunnel, TunnelKind, text, tree,
    validate, wgquick,
};

/// What stands for the directory of systemd's credentials (systemd.exec(5)) at the start of a path.
const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}/";

pub(super) fn load(path: &Path) -> Result<Config, Error> {
    let mut files = Files { order: Vec::new(), problems: Problems::default() };
    let config = files.load(path);
    let Files { order, problems } = files;
    let (mut problems, more) = problems.into_parts();
    problems.sort_by_key(|problem| {
        let file = order.iter().position(|file| *file == problem.location.file);
        (file.unwrap_or(usize::MAX), problem.location.line, problem.location.column)
    });
    match (Error::from_problems(problems, more), config) {
        (None, Some(config)) => Ok(Config { files: order, ..config }),
        (Some(error), _) => Err(error),
        (None, None) => Err(Problem::of_file(path, "cannot be used").into()),
    }
}

struct Files {
    /// Every file that was tried, in order.
    order: Vec<PathBuf>,
    problems: Problems,
}

impl Files {
    /// `None` if a problem was noted.
    fn load(&mut self, path: &Path) -> Option<Config> {
        let root = self.read_merged(path)?;
        let mut draft = draft::read(&root, &self.problems);
        let notices = self.follow(&mut draft);
        if !self.problems.is_empty() {
            return None;
        }
        validate::check(&draft, &self.problems);
        let places = places(&root, &draft);
        assemble(draft, notices, places)
    }

    fn open(&mut self, path: &Path) -> Result<Rc<Source>, Problem> {
        self.order.push(path.to_owned());
        Source::read(path)
    }

    fn read_merged(&mut self, path: &Path) -> Option<Node> {
        let main = self.open(path).and_then(|source| match source.text.trim() {
            "" => Err(Problem::of_file(path, "the file is empty")),
            _ => Ok(source),
        });
        let main = main.map_err(|problem| match problem.help {
            None if matches!(problem.message.as_str(), "the file is empty" | "no such file") => {
                problem.help(format!("write at least\n{MINIMAL}"))
            }
            _ => problem,
        });
        let mut sources = vec![self.problems.note(main)?];
        let names = drop_ins(&drop_in_directory(path));
        for name in self.problems.note(names)? {
            let source = self.open(&name);
            sources.extend(self.problems.note(source));
        }
        let mut merged: Option<Node> = None;
        for source in &sources {
            match (tree::parse(source), &mut merged) {
                (Err(problems), _) => self.problems.extend(problems),
                (Ok(node), Some(base)) => tree::merge(base, node),
                (Ok(node), None) => merged = Some(node),
            }
        }
        merged.filter(|_| self.problems.is_empty())
    }

    /// Reads the files that the configuration names.
    fn follow(&mut self, draft: &mut Draft) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some(config) = &draft.tunnel.config
            && let Some(source) = self.open_named(config)
        {
            let wg = wgquick::read(&source, &self.problems);
            notices = wg.notices.clone();
            self.join(draft, wg);
        }
        if let Some(path) = draft.tunnel.private_key_file.clone()
            && let Some(key) = self.read_key(&path)
        {
            draft.tunnel.private_key = Some(key);
        }
        for server in &mut draft.servers {
            if let Some(path) = server.preshared_key_file.clone() {
                server.preshared_key = self.read_key(&path);
            }
        }
        notices
    }

    /// Adds what a wg-quick file says; its peers come before every `[[server]]`.
    fn join(&self, draft: &mut Draft, wg: wgquick::WgQuick) {
        let tunnel = &mut draft.tunnel;
        let problems = &self.problems;
        if let (None, Some(config)) = (&tunnel.interface, &tunnel.config) {
            tunnel.interface = problems.note(name_of(config));
        }
        refuse_both(tunnel.private_key_file.as_ref(), wg.private_key.as_ref(), problems);
        tunnel.private_key = wg.private_key;
        either(&mut tunnel.addresses, wg.addresses, problems);
        either(&mut tunnel.dns, wg.dns, problems);
        either(&mut tunnel.mtu, wg.mtu, problems);
        either(&mut tunnel.mark, wg.mark, problems);
        either(&mut tunnel.listen_port, wg.listen_port, problems);
        tunnel.dns_search = wg.dns_search;
        draft.servers.splice(0..0, wg.servers);
    }

    fn open_named(&mut self, named: &Placed<PathBuf>) -> Option<Rc<Source>> {
        let path = resolve(named).map_err(|complaint| complaint.at(&named.place));
        let path = self.problems.note(path)?;
        let source = self.open(&path).map_err(|problem| blame(named, problem));
        self.problems.note(source)
    }

    fn read_key(&mut self, named: &Placed<PathBuf>) -> Option<Placed<Key>> {
        let source = self.open_named(named)?;
        self.problems.note(source.require_private())?;
        let place = Place::file(&source);
        let key = if source.text.trim().is_empty() {
            Err(place.problem("the file is empty").help("\"wg genkey\" writes a key"))
        } else {
            value::key(&source.text).map_err(|complaint| complaint.at(&place))
        };
        let value = self.problems.note(key)?;
        Some(Placed { value, place: named.place.clone() })
    }
}

fn assemble(draft: Draft, notices: Vec<Notice>, places: Places) -> Option<Config> {
    let tunnel = assemble_tunnel(draft.tunnel)?;
    let server = |server| assemble_server(server, tunnel.kind);
    let servers = draft.servers.into_iter().map(server).collect::<Option<_>>()?;
    Some(Config {
        files: Vec::new(),
        lock: draft.lock,
        tunnel,
        servers,
        allow: draft.allow.finish(),
        forward: draft.forward,
        notices,
        places,
    })
}

fn assemble_tunnel(tunnel: TunnelDraft) -> Option<Tunnel> {
    let managed = tunnel.kind == TunnelKind::Wireguard;
    Some(Tunnel {
        kind: tunnel.kind,
        interface: tunnel.interface?.value,
        mark: tunnel.mark.map_or(super::DEFAULT_MARK, |mark| mark.value),
        private_key: tunnel.private_key.filter(|_| managed).map(|key| key.value),
        addresses: values(&tunnel.addresses?.value),
        dns: tunnel.dns.map_or(Vec::new(), |dns| values(&dns.value)),
        dns_search: tunnel.dns_search,
        mtu: tunnel.mtu.map(|mtu| mtu.value),
        listen_port: tunnel.listen_port.map(|port| port.value),
        backend: tunnel.backend,
        connect_at_start: tunnel.connect_at_start,
        keep_at_stop: tunnel.keep_at_stop,
    })
}

fn assemble_server(server: ServerDraft, kind: TunnelKind) -> Option<Server> {
    let managed = kind == TunnelKind::Wireguard;
    let shape = if managed { MessageShape::Wireguard } else { MessageShape::Any };
    Some(Server {
        protocol: validate::protocol(&server),
        name: server.name?.value,
        endpoints: values(&server.endpoints?.value),
        public_key: server.public_key.map(|key| key.value),
        preshared_key: server.preshared_key.filter(|_| managed).map(|key| key.value),
        allowed_ips: server.allowed_ips.map_or_else(everything, |list| values(&list.value)),
        persistent_keepalive: server
            .persistent_keepalive
            .map(|seconds| seconds.value)
            .filter(|&seconds| seconds != 0),
        message_shape: server.message_shape.map_or(shape, |shape| shape.value),
    })
}

fn everything() -> Vec<IpNet> {
    vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

/// A wg-quick file gives the interface its name.
fn name_of(config: &Placed<PathBuf>) -> Result<Placed<String>, Problem> {
    let stem = config.value.file_stem().unwrap_or_default().to_string_lossy();
    let name = value::link_name(&stem).map_err(|complaint| {
        let problem = complaint.at(&config.place);
        let message = format!("the file would give the tunnel its name, but {}", problem.message);
        let help = "give it another, e.g. interface = \"wg0\" in [tunnel]".into();
        Problem { message, help: Some(help), ..problem }
    })?;
    Ok(Placed { value: name, place: config.place.clone() })
}

/// Says who named a file that cannot be read.
fn blame(named: &Placed<PathBuf>, problem: Problem) -> Problem {
    let path = named.value.to_string_lossy();
    if text::hide_keys(&path) != path {
        // A broken key, written where the path of its file belongs, must not be shown as a path.
        return Problem {
            help: None,
            forbidden: problem.forbidden,
            ..named.place.problem(format!("that file: {}", problem.message))
        };
    }
    let message = format!("{} (named by {})", problem.message, named.place.line());
    Problem { message, ..problem }
}

fn either<T>(ours: &mut Option<Placed<T>>, wg: Option<Placed<T>>, problems: &Problems) {
    refuse_both(ours.as_ref(), wg.as_ref(), problems);
    if ours.is_none() {
        *ours = wg;
    }
}

fn refuse_both<A, B>(ours: Option<&Placed<A>>, wg: Option<&Placed<B>>, problems: &Problems) {
    let (Some(ours), Some(wg)) = (ours, wg) else { return };
    let message = format!("also given as {} at {}", wg.place.key, wg.place.line());
    problems.add(ours.place.problem(message).help("keep one of them"));
}

fn resolve(named: &Placed<PathBuf>) -> Result<PathBuf, Complaint> {
    let Some(name) = named.value.to_str().and_then(|path| path.strip_prefix(CREDENTIALS)) else {
        return Ok(named.place.source().resolve(&named.value));
    };
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Complaint::new("$CREDENTIALS_DIRECTORY is not set")
            .help("only a systemd service with LoadCredential= has it")
    })?;
    Ok(Path::new(&directory).join(name))
}

/// `/etc/killswitch.d` for `/etc/killswitch.toml`.
fn drop_in_directory(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|extension| extension == "toml") {
        return path.with_extension("d");
    }
    let mut name = OsString::from(path);
    name.push(".d");
    name.into()
}

/// `*.toml` in byte order; names that begin with a dot are left to editors and package managers.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    let fail = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => Problem::forbidden(directory),
        _ => Problem::of_file(directory, format!("this directory cannot be read: {error}")),
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            paths.push(directory.join(name));
        }
    }
    paths.sort();
    Ok(paths)
}

fn places(root: &Node, draft: &Draft) -> Places {
    let mut known = BTreeMap::new();
    root.each_place(&mut |place: &Place| {
        known.insert(place.key.clone(), place.line());
    });
    let mut add = |key: String, place: &Place| {
        known.insert(key, place.line());
    };
    if let Some(addresses) = &draft.tunnel.addresses {
        add("tunnel.addresses".into(), &addresses.place);
    }
    if let Some(dns) = &draft.tunnel.dns {
        add("tunnel.dns".into(), &dns.place);
    }
    for (index, server) in draft.servers.iter().enumerate() {
        add(format!("server[{index}]"), &server.place);
        let lists = [
            ("endpoints", server.endpoints.as_ref().map(|list| &list.place)),
            ("allowed_ips", server.allowed_ips.as_ref().map(|list| &list.place)),
            ("message_shape", server.message_shape.as_ref().map(|shape| &shape.place)),
        ];
        for (name, place) in lists {
            add(format!("server[{index}].{name}"), place.unwrap_or(&server.place));
        }
    }
    let main = Location::file(root.place.source().path.clone());
    Places { main, known }
}
