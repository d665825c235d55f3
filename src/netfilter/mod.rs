//! The nftables edge: puts our tables into the kernel in one transaction each, and reads them back.

use std::io;

pub mod batch;
mod egress;
pub mod live;
pub mod message;
mod own;
mod plain;
mod replace;

pub use batch::Refusal;
pub use egress::{Guard, apply_guard, apply_guard_by, guarded, references};
pub use live::{Counted, LiveTable};
pub use own::{Ownership, exists, own, owner};
pub use replace::{Applied, apply, commit, remove};

/// Why a table could not be put into the kernel; what was there before is still there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables: {0}; load the module with `modprobe nf_tables`")]
    Missing(io::Error),
    /// The caller lacks CAP_NET_ADMIN.
    #[error(
        "not permitted to read or change the firewall (no CAP_NET_ADMIN)\nhelp: run this as root, e.g. with sudo"
    )]
    NotPermitted,
    /// Another process owns the table.
    #[error(
        "table {family} killswitch is owned by {owner}; nobody else can change it\n\
         help: stop that program; what systemd keeps of killswitch.service is released by\n      \
         systemctl clean --what=fdstore killswitch.service"
    )]
    Owned {
        /// Which table.
        family: crate::ruleset::Family,
        /// The program that owns it, as far as it is known.
        owner: String,
    },
    /// Other programs changed the ruleset again and again meanwhile.
    #[error(
        "other programs keep changing the firewall; tried {0} times\n\
         help: `nft monitor` shows which"
    )]
    Busy(u32),
    /// The kernel refused these messages.
    #[error("the kernel refused {}", describe(.0))]
    Refused(Vec<(String, crate::netlink::Failure)>),
    /// The netlink socket failed.
    #[error("netlink: {0}")]
    Socket(io::Error),
    /// The kernel took it, but what it holds is something else.
    #[error("table {0} killswitch does not read back as it was written")]
    NotAsWritten(crate::ruleset::Family),
}

impl Error {
    /// Whether it is another program's doing, or the moment's, and no matter of what this kernel can.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Error::Owned { .. } | Error::Busy(_) | Error::Socket(_) | Error::NotAsWritten(_)
        )
    }
}

fn describe(failures: &[(String, crate::netlink::Failure)]) -> String {
    /// More would only repeat the cause.
    const SHOWN: usize = 5;
    let mut lines: Vec<String> =
        failures.iter().take(SHOWN).map(|(what, failure)| format!("{what}: {failure}")).collect();
    if failures.len() > SHOWN {
        lines.push(format!("and {} more", failures.len() - SHOWN));
    }
    lines.join("; ")
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        use nix::errno::Errno;
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => Error::NotPermitted,
            Some(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => {
                Error::Missing(error)
            }
            _ => Error::Socket(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    /// What `socket` and nfnetlink answer on a kernel without nf_tables, and to the unprivileged:
    /// no kernel here is without it, so the answers are made up.
    #[test]
    fn a_kernel_without_nf_tables_is_told_from_a_missing_privilege() {
        let from = |errno: Errno| Error::from(io::Error::from(errno));
        for errno in [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP, Errno::EINVAL] {
            assert!(matches!(from(errno), Error::Missing(_)), "{errno}");
        }
        assert!(from(Errno::EPROTONOSUPPORT).to_string().contains("modprobe nf_tables"));
        assert!(matches!(from(Errno::EPERM), Error::NotPermitted));
        assert!(matches!(from(Errno::ENOBUFS), Error::Socket(_)));
    }
}
