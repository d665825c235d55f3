//! wg-quick files (wg-quick(8), wg(8)), read as they are.
//!
//! What would run programs or change routes is not done, and said so in a [`Notice`].

use std::ops::Range;
use std::rc::Rc;

use super::draft::{List, ServerDraft};
use super::error::Problem;
use super::fields::Problems;
use super::source::{Place, Placed, Source};
use super::text::{nearest, quote};
use super::value::{self, Complaint};
use super::{Key, MessageShape, Notice, schema};

/// Longer names are not shown, even if they resemble a known one: a part of a key may stand there.
const LONGEST_MISSPELT_NAME: usize = 24;
/// The same for names that resemble nothing.
const LONGEST_STRANGE_NAME: usize = 12;

/// What a file says.
pub(super) struct WgQuick {
    pub(super) private_key: Option<Placed<Key>>,
    pub(super) addresses: Option<List<ipnet::IpNet>>,
    pub(super) dns: Option<List<std::net::IpAddr>>,
    pub(super) dns_search: Vec<String>,
    pub(super) mtu: Option<Placed<u16>>,
    pub(super) mark: Option<Placed<u32>>,
    pub(super) listen_port: Option<Placed<u16>>,
    pub(super) servers: Vec<ServerDraft>,
    pub(super) notices: Vec<Notice>,
}

struct Section {
    is_peer: bool,
    place: Place,
    lines: Vec<Line>,
}

impl Section {
    fn known(&self) -> &'static [&'static str] {
        if self.is_peer { schema::WG_PEER } else { schema::WG_INTERFACE }
    }
}

/// `Key = value`.
struct Line {
    /// Spelt as in the manual.
    key: &'static str,
    key_place: Place,
    text: String,
    span: Range<usize>,
}

/// Reads a file; problems are noted, and what has one is left out.
pub(super) fn read(source: &Rc<Source>, problems: &Problems) -> WgQuick {
    let sections = split(source, problems);
    let holds_secret = |line: &Line| matches!(line.key, "PrivateKey" | "PresharedKey");
    if sections.iter().flat_map(|section| &section.lines).any(holds_secret) {
        problems.note(source.require_private());
    }
    let empty = Section { is_peer: false, place: Place::file(source), lines: Vec::new() };
    let interface = sections.iter().find(|section| !section.is_peer).unwrap_or_else(|| {
        problems.add(
            Place::file(source)
                .problem("no [Interface]")
                .help("a wg-quick file is expected, with one [Interface] and at least one [Peer]"),
        );
        &empty
    });
    let peers: Vec<&Section> = sections.iter().filter(|section| section.is_peer).collect();
    let reader = Reader { source, problems };
    let names = server_names(source, peers.len());
    let (search, resolvers): (Vec<_>, Vec<_>) =
        reader.items(interface, "DNS").into_iter().partition(|(text, _)| is_search_domain(text));
    WgQuick {
        private_key: reader.single(interface, "PrivateKey", value::key),
        addresses: reader.list(
            interface,
            "Address",
            reader.items(interface, "Address"),
            value::lenient_interface_address,
        ),
        dns: reader.list(interface, "DNS", resolvers, value::resolver),
        dns_search: search.into_iter().map(|(domain, _)| domain).collect(),
        mtu: reader.single(interface, "MTU", mtu),
        mark: transpose(reader.single(interface, "FwMark", mark)),
        listen_port: transpose(reader.single(interface, "ListenPort", listen_port)),
        servers: peers.iter().zip(names).map(|(peer, name)| reader.server(peer, name)).collect(),
        notices: interface.lines.iter().filter_map(notice).collect(),
    }
}

fn split(source: &Rc<Source>, problems: &Problems) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut unknown_section = false;
    let mut start = 0;
    for whole in source.text.split_inclusive('\n') {
        let line = whole.split('#').next().unwrap_or_default().trim_start_matches('\u{feff}');
        let text = line.trim();
        let from = start + whole.find(text).unwrap_or(0);
        let span = from..from + text.len();
        start += whole.len();
        if text.is_empty() {
            continue;
        }
        if text.starts_with('[') {
            let section = section(source, text, span, &sections);
            unknown_section = section.is_err();
            sections.extend(problems.note(section));
        } else if !unknown_section {
            let line = line_of(source, text, span, sections.last());
            if let (Some(line), Some(section)) = (problems.note(line), sections.last_mut()) {
                section.lines.push(line);
            }
        }
    }
    sections
}

fn section(
    source: &Rc<Source>,
    text: &str,
    span: Range<usize>,
    before: &[Section],
) -> Result<Section, Problem> {
    let place = Place::new(source, span, "");
    let is_peer = match text.to_ascii_lowercase().as_str() {
        "[interface]" => false,
        "[peer]" => true,
        _ => {
            let plain = text.ends_with(']') && text.len() <= LONGEST_MISSPELT_NAME;
            let problem = place.problem("unknown section");
            let problem = if plain { problem } else { problem.without_excerpt() };
            return Err(problem.help("write [Interface] or [Peer], alone on its line"));
        }
    };
    let first = before.iter().find(|section| !section.is_peer && !is_peer);
    if let Some(first) = first {
        let message = format!("a second [Interface]; the first is at {}", first.place.line());
        return Err(place.problem(message));
    }
    Ok(Section { is_peer, place, lines: Vec::new() })
}

fn line_of(
    source: &Rc<Source>,
    text: &str,
    span: Range<usize>,
    section: Option<&Section>,
) -> Result<Line, Problem> {
    let whole = Place::new(source, span.clone(), "");
    let Some((name, value)) = text.split_once('=') else {
        return Err(whole.problem("not a line of the form \"Key = value\"").without_excerpt());
    };
    let Some(section) = section else {
        return Err(whole
            .problem("stands before the first [Interface] or [Peer]")
            .without_excerpt());
    };
    let name = name.trim_end();
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(whole.problem("not a line of the form \"Key = value\"").without_excerpt());
    }
    let key_place = Place::new(source, span.start..span.start + name.len(), "");
    let Some(key) = find(name, section.known()) else {
        if whole.goes_on_with_a_key() {
            let problem = whole.problem("not a line of the form \"Key = value\"");
            return Err(problem.help("a key stands on one line, whole"));
        }
        return Err(unknown_key(&key_place, name, section));
    };
    let text = value.trim();
    let from = span.end - value.trim_start().len();
    let span = from..from + text.len();
    let key_place = key_place.with_key(key);
    Ok(Line { key, key_place, text: text.into(), span })
}

fn find(name: &str, keys: &[&'static str]) -> Option<&'static str> {
    keys.iter().copied().find(|key| key.eq_ignore_ascii_case(name))
}

fn unknown_key(place: &Place, name: &str, section: &Section) -> Problem {
    let (elsewhere, other) = if section.is_peer {
        (schema::WG_INTERFACE, "[Interface]")
    } else {
        (schema::WG_PEER, "[Peer]")
    };
    let shown = quote(name);
    if find(name, elsewhere).is_some() {
        return place.problem(format!("unknown key {shown} here; it belongs into {other}"));
    }
    if is_amnezia(name) {
        return place.problem(format!("unknown key {shown}")).help(
            "this is a file for AmneziaWG: let its own tools bring the tunnel up, and use \
             kind = \"external\"",
        );
    }
    match nearest(name, section.known()) {
        Some(near) if name.len() <= LONGEST_MISSPELT_NAME => {
            place.problem(format!("unknown key {shown}; did you mean \"{near}\"?"))
        }
        _ => {
            let known = format!("known here: {}", section.known().join(", "));
            if name.len() <= LONGEST_STRANGE_NAME {
                place.problem(format!("unknown key {shown}")).help(known)
            } else {
                place.problem("unknown key").without_excerpt().help(known)
            }
        }
    }
}

/// Keys that AmneziaWG adds to hide WireGuard's messages.
fn is_amnezia(name: &str) -> bool {
    let digits = name.trim_start_matches(['S', 'H', 'I', 'J', 's', 'h', 'i', 'j']);
    matches!(name.to_ascii_lowercase().as_str(), "jc" | "jmin" | "jmax")
        || (name.len() == 2 && digits.len() == 1 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// `FILE`, or `FILE-1`, `FILE-2` and so on for several peers.
fn server_names(source: &Source, count: usize) -> Vec<String> {
    let stem = source.path.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if value::is_server_character(c) { c } else { '-' };
    let stem: String = stem.trim_start_matches('-').chars().map(plain).take(48).collect();
    match count {
        1 => vec![stem],
        count => (1..=count).map(|number| format!("{stem}-{number}")).collect(),
    }
}

/// What stands in the file but is not done.
fn notice(line: &Line) -> Option<Notice> {
    let message = match line.key {
        "PreUp" | "PostUp" | "PreDown" | "PostDown" => "commands of a wg-quick file are not run",
        "Table" => "not used: killswitch keeps its routes in a table of its own",
        "SaveConfig" if line.text.eq_ignore_ascii_case("true") => {
            "not used: killswitch never writes to this file"
        }
        _ => return None,
    };
    let location = line.key_place.location();
    Some(Notice { location, message: format!("{}: {message}", line.key) })
}

struct Reader<'a> {
    source: &'a Rc<Source>,
    problems: &'a Problems,
}

impl Reader<'_> {
    fn place(&self, line: &Line) -> Place {
        let span = if line.text.is_empty() { None } else { Some(line.span.clone()) };
        span.map_or_else(|| line.key_place.clone(), |span| Place::new(self.source, span, line.key))
    }

    /// A key that may stand once.
    fn single<T>(
        &self,
        section: &Section,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Placed<T>> {
        let mut lines = section.lines.iter().filter(|line| line.key == key);
        let line = lines.next()?;
        for again in lines {
            let first = line.key_place.line();
            let problem = again.key_place.problem(format!("given twice; the first is at {first}"));
            self.problems.add(problem.help("keep one of them"));
        }
        let place = self.place(line);
        let value =
            self.problems.note(parse(&line.text).map_err(|complaint| complaint.at(&place)))?;
        Some(Placed { value, place })
    }

    /// The items of all lines of a key, separated by commas. Empty ones are left out, as wg-quick(8)
    /// does.
    fn items(&self, section: &Section, key: &str) -> Vec<(String, Place)> {
        let mut items = Vec::new();
        for line in section.lines.iter().filter(|line| line.key == key && !line.text.is_empty()) {
            let mut start = line.span.start;
            for whole in line.text.split(',') {
                let text = whole.trim();
                let from = start + (whole.len() - whole.trim_start().len());
                let place = Place::new(self.source, from..from + text.len(), line.key);
                if !text.is_empty() {
                    items.push((text.into(), place));
                }
                start += whole.len() + 1;
            }
        }
        items
    }

    /// wg(8) takes no empty item, where wg-quick(8) reads the other lists.
    fn refuse_empty_items(&self, section: &Section, key: &str) {
        let has_one = |line: &&Line| {
            line.key == key
                && !line.text.is_empty()
                && line.text.split(',').any(|it| it.trim().is_empty())
        };
        for line in section.lines.iter().filter(has_one) {
            let problem = self.place(line).problem("an empty item");
            self.problems
                .add(problem.help("write one comma between two items, and none after the last"));
        }
    }

    /// `None` if the key does not stand in the section.
    fn list<T>(
        &self,
        section: &Section,
        key: &str,
        items: Vec<(String, Place)>,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<List<T>> {
        let first = section.lines.iter().find(|line| line.key == key)?;
        let read = |(text, place): (String, Place)| {
            let result = parse(&text).map_err(|complaint| complaint.at(&place));
            self.problems.note(result).map(|value| Placed { value, place })
        };
        let value = items.into_iter().filter_map(read).collect();
        Some(Placed { value, place: first.key_place.clone() })
    }

    fn server(&self, peer: &Section, name: String) -> ServerDraft {
        self.refuse_empty_items(peer, "AllowedIPs");
        let networks = self.items(peer, "AllowedIPs");
        if networks.is_empty() {
            let problem = peer.place.problem("no AllowedIPs: nothing would be sent to this peer");
            self.problems.add(problem.help("write AllowedIPs = 0.0.0.0/0, ::/0"));
        }
        let endpoint = self
            .single(peer, "Endpoint", value::endpoint)
            .map(|endpoint| Placed { place: endpoint.place.clone(), value: vec![endpoint] });
        ServerDraft {
            place: peer.place.clone(),
            name: Some(Placed { value: name, place: peer.place.clone() }),
            endpoints: endpoint,
            protocol: None,
            public_key: self.single(peer, "PublicKey", value::public_key),
            preshared_key_file: None,
            preshared_key: self.single(peer, "PresharedKey", value::key),
            allowed_ips: self.list(peer, "AllowedIPs", networks, value::lenient_network),
            persistent_keepalive: self.single(peer, "PersistentKeepalive", keepalive),
            message_shape: Some(Placed {
                value: MessageShape::Wireguard,
                place: peer.place.clone(),
            }),
        }
    }
}

fn transpose<T>(placed: Option<Placed<Option<T>>>) -> Option<Placed<T>> {
    let Placed { value, place } = placed?;
    value.map(|value| Placed { value, place })
}

/// wg-quick(8): what is not an address is a search domain.
fn is_search_domain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().all(plain) && text.contains(|c: char| c.is_ascii_alphabetic())
}

fn number(text: &str, low: u32, high: u32) -> Result<u32, Complaint> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let number = u32::from_str_radix(digits, radix).ok().filter(|_| plain);
    number.filter(|number| (low..=high).contains(number)).ok_or_else(|| {
        Complaint::new(format!("{} is not a number from {low} to {high}", quote(text)))
    })
}

fn small(text: &str, low: u16) -> Result<u16, Complaint> {
    let number = number(text, low.into(), u16::MAX.into())?;
    u16::try_from(number).map_err(|error| Complaint::new(error.to_string()))
}

fn mtu(text: &str) -> Result<u16, Complaint> {
    small(text, super::SMALLEST_MTU)
}

/// Zero and "off" mean none: the default is used then.
fn mark(text: &str) -> Result<Option<u32>, Complaint> {
    if text == "off" { Ok(None) } else { number(text, 0, u32::MAX).map(|m| (m != 0).then_some(m)) }
}

/// Zero means one of the kernel's choice.
fn listen_port(text: &str) -> Result<Option<u16>, Complaint> {
    small(text, 0).map(|port| (port != 0).then_some(port))
}

fn keepalive(text: &str) -> Result<u16, Complaint> {
    if text == "off" { Ok(0) } else { small(text, 0) }
}
