use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::encode::{dump, request};
use super::socket::text;
use super::{Attributes, Message, Socket, links};

const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const RTM_GETNSID: u16 = 90;
/// TC_H_INGRESS, and TC_H_CLSACT with TC_H_MIN_INGRESS or TC_H_MIN_EGRESS
/// (include/uapi/linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_fff1;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;

/// What hangs on a link, or what it hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Its index.
    pub link: u32,
    /// Its name.
    pub name: String,
    /// IFLA_INFO_KIND; absent for hardware.
    pub kind: Option<String>,
    /// The loopback link.
    pub loopback: bool,
    /// Number of the XDP program that runs on it.
    pub xdp: Option<u32>,
    /// Index of the link below it, in the namespace that `parent_namespace` names.
    pub parent: Option<u32>,
    /// The link below it is in the namespace of this number ([`namespace_number`]); absent: in its
    /// own.
    pub parent_namespace: Option<i32>,
}

/// Filters of tc(8) of one kind in one place of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Their link's index.
    pub link: u32,
    /// Their kind: "u32", "bpf", ...
    pub kind: String,
    /// An action of one of them hands packets to another link ("mirred").
    pub redirects: bool,
}

/// Every link of the socket's namespace with what hangs on it. By hand as [`super::links`].
///
/// # Errors
/// The kernel's refusal.
pub fn attached(socket: &Socket) -> io::Result<Vec<Attached>> {
    Ok(links::ask(socket)?.iter().filter_map(read_link).collect())
}

/// The number that the socket's namespace has for another one; `None`: it has none, so no link of
/// it hangs on one there. Asking changes nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn namespace_number(socket: &Socket, other: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let mut body = vec![0; 4];
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&NETNSA_FD.to_ne_bytes());
    body.extend_from_slice(&other.as_raw_fd().to_ne_bytes());
    socket.send(&request(RTM_GETNSID, 0, &body))?;
    let answers = socket.receive()?;
    let answer = answers.first().ok_or_else(|| io::Error::other("no answer from the kernel"))?;
    if let Some(failure) = answer.ack().and_then(|ack| ack.failure) {
        return Err(io::Error::from_raw_os_error(failure.errno));
    }
    let number = Attributes(answer.payload.get(4..).unwrap_or_default()).get(NETNSA_NSID);
    let number = number.and_then(|value| value.try_into().ok()).map(i32::from_ne_bytes);
    Ok(number.filter(|&number| number >= 0))
}

/// Every filter of every queueing discipline in the socket's namespace.
///
/// # Errors
/// The kernel's refusal; a kernel without traffic control has none.
pub fn filters(socket: &Socket) -> io::Result<Vec<Filter>> {
    let disciplines = match socket.dump_consistent(&dump(RTM_GETQDISC, &[0; 20])) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    let mut filters = BTreeMap::new();
    for discipline in &disciplines {
        for (link, parent) in places(discipline) {
            let mut body = vec![0; 20];
            body[4..8].copy_from_slice(&link.to_ne_bytes());
            body[12..16].copy_from_slice(&parent.to_ne_bytes());
            match socket.dump_consistent(&dump(RTM_GETTFILTER, &body)) {
                Ok(answers) => {
                    for (kind, redirects) in answers.iter().filter_map(read_filter) {
                        *filters.entry((link, parent, kind)).or_default() |= redirects;
                    }
                }
                // The link, or its discipline, went meanwhile; or it takes no filters.
                Err(error) if error.raw_os_error().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }
    let filter = |((link, _, kind), redirects)| Filter { link, kind, redirects };
    Ok(filters.into_iter().map(filter).collect())
}

/// Where a discipline may have filters: (link, parent).
fn places(discipline: &Message) -> Vec<(u32, u32)> {
    let Some((link, handle)) = word(discipline, 4).zip(word(discipline, 8)) else {
        return Vec::new();
    };
    let parents = match kind(discipline, 20).as_deref() {
        Some("clsact") => vec![CLSACT_INGRESS, CLSACT_EGRESS],
        Some("ingress") => vec![INGRESS],
        _ if handle != 0 => vec![handle],
        _ => Vec::new(),
    };
    parents.into_iter().map(|parent| (link, parent)).collect()
}

/// Kind, and whether it redirects. The first answer for a priority has no options: it is the list.
fn read_filter(message: &Message) -> Option<(String, bool)> {
    const TCA_OPTIONS: u16 = 2;
    /// The name of the action, as it stands in TCA_ACT_KIND wherever each kind of filter nests it.
    const MIRRED: &[u8] = b"mirred\0";
    let options = Attributes(message.payload.get(20..)?).get(TCA_OPTIONS)?;
    Some((kind(message, 20)?, options.windows(MIRRED.len()).any(|it| it == MIRRED)))
}

fn read_link(message: &Message) -> Option<Attached> {
    const IFLA_LINK: u16 = 5;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_XDP: u16 = 43;
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_ne_bytes);
    let link = links::read(message)?;
    let mut it = Attached {
        link: link.index,
        name: link.name,
        kind: link.kind,
        loopback: link.loopback,
        ..Attached::default()
    };
    for (kind, value) in Attributes(message.payload.get(16..)?) {
        match kind {
            IFLA_LINK => it.parent = number(value).filter(|&parent| parent != 0),
            IFLA_LINK_NETNSID => it.parent_namespace = number(value).map(u32::cast_signed),
            IFLA_XDP => it.xdp = read_xdp(value),
            _ => {}
        }
    }
    Some(it)
}

/// The number of the program, or zero where it runs in several modes, each with one.
fn read_xdp(value: &[u8]) -> Option<u32> {
    const IFLA_XDP_ATTACHED: u16 = 2;
    const IFLA_XDP_PROG_ID: u16 = 4;
    let program = Attributes(value).get(IFLA_XDP_PROG_ID).and_then(|value| value.try_into().ok());
    Attributes(value)
        .get(IFLA_XDP_ATTACHED)
        .is_some_and(|mode| mode.first().is_some_and(|&mode| mode != 0))
        .then(|| program.map_or(0, u32::from_ne_bytes))
}

fn word(message: &Message, at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(message.payload.get(at..at + 4)?.try_into().ok()?))
}

/// TCA_KIND, after a header of this length.
fn kind(message: &Message, header: usize) -> Option<String> {
    Attributes(message.payload.get(header..)?).get(1).map(text)
}
