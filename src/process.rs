//! What /proc says of a process (proc(5)).

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// proc_pid_stat(5); everybody may read it where /proc shows the process.
pub struct Stat {
    /// Its name (`/proc/PID/comm`).
    pub name: String,
    /// Its parent's number.
    pub parent: u32,
    /// The device of its controlling terminal; zero: it has none.
    pub terminal: i32,
}

impl Stat {
    /// `None`: there is no such process, or it is not shown.
    pub fn of(process: u32) -> Option<Self> {
        /// 52 numbers, and a name of 64 bytes at most.
        const LONGEST: usize = 2048;
        Stat::parse(read(format!("/proc/{process}/stat"), &mut [0; LONGEST]))
    }

    /// The name stands in parentheses, and may itself have some.
    fn parse(stat: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(stat);
        let (before, after) = text.rsplit_once(") ")?;
        let (_, name) = before.split_once('(')?;
        let mut fields = after.split(' ').skip(1);
        let parent = fields.next()?.parse().ok()?;
        let terminal = fields.nth(2)?.parse().ok()?;
        Some(Stat { name: name.to_owned(), parent, terminal })
    }
}

/// As much of a file of /proc as the buffer holds; nothing, if it cannot be read. Such a file has no
/// size to go by; those of a process, and single values, give all that they have at once.
pub fn read(path: impl AsRef<Path>, buffer: &mut [u8]) -> &[u8] {
    let length = File::open(path).and_then(|mut file| file.read(buffer)).unwrap_or_default();
    &buffer[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_parentheses() {
        let stat = Stat::parse(b"7 (a) (b) S 42 7 7 34817 7 0").expect("a process");
        assert_eq!((stat.name.as_str(), stat.parent, stat.terminal), ("a) (b", 42, 34817));
    }

    #[test]
    fn a_process_has_a_parent() {
        let own = Stat::of(std::process::id()).expect("this process");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(Stat::of(u32::MAX).is_none());
    }
}
