//! Which files are read at all.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use killswitch::config;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

const WG_QUICK: &str = "[Interface]
PrivateKey = yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=
Address = 10.64.0.2/32
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 0.0.0.0/0
Endpoint = 198.51.100.7:51820
";

/// A directory with a valid configuration: `killswitch.toml` and `wg0.conf`.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let site = Site(tempfile::tempdir().unwrap());
        site.write("killswitch.toml", "[tunnel]\nconfig = \"wg0.conf\"\n", 0o644);
        site.write("wg0.conf", WG_QUICK, 0o600);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) {
        fs::write(self.path(name), content).unwrap();
        self.chmod(name, mode);
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// The error text, or "read".
    fn load(&self) -> String {
        load(&self.path("killswitch.toml"))
    }

    #[track_caller]
    fn refuses(&self, file: &str, part: &str) {
        let said = self.load();
        let begins = format!("{}: ", self.path(file).display());
        assert!(said.starts_with(&begins) && said.contains(part), "{said}");
    }
}

fn load(path: &Path) -> String {
    config::load(path).map_or_else(|error| error.to_string(), |_| "read".into())
}

#[test]
fn safe_files_are_read() {
    assert_eq!(Site::new().load(), "read");
}

#[test]
fn a_missing_file_says_what_to_write() {
    let site = Site::new();
    fs::remove_file(site.path("killswitch.toml")).unwrap();
    site.refuses("killswitch.toml", "no such file\nhelp: write at least\n      [tunnel]\n");
    assert!(load(&site.path("nowhere/killswitch.toml")).contains("no such file"));
    assert!(load(&site.path("wg0.conf/killswitch.toml")).contains("not a directory"));
    assert!(load(Path::new("/")).contains("not the path of a file"));
}

#[test]
fn a_missing_wg_quick_file_says_who_named_it() {
    let site = Site::new();
    fs::remove_file(site.path("wg0.conf")).unwrap();
    let by = format!("no such file (named by {}:2)", site.path("killswitch.toml").display());
    site.refuses("wg0.conf", &by);
}

#[test]
fn an_empty_file_says_what_to_write() {
    let site = Site::new();
    for text in ["", "\n \n"] {
        site.write("killswitch.toml", text, 0o644);
        site.refuses("killswitch.toml", "empty\nhelp: write at least\n      [tunnel]\n");
    }
}

#[test]
fn files_that_others_can_write_are_refused() {
    for mode in [0o620, 0o602, 0o666] {
        for file in ["killswitch.toml", "wg0.conf"] {
            let site = Site::new();
            site.chmod(file, mode);
            site.refuses(file, "others than root may write to it");
        }
    }
}

#[test]
fn files_of_others_are_refused() {
    for file in ["killswitch.toml", "wg0.conf"] {
        let site = Site::new();
        match chown(site.path(file), Some(1), Some(1)) {
            Ok(()) => site.refuses(file, "belongs to user 1, not to root"),
            Err(error) => eprintln!("not tested: no second user is mapped here: {error}"),
        }
    }
}

#[test]
fn keys_that_others_can_read_are_refused() {
    for mode in [0o640, 0o604, 0o644] {
        let site = Site::new();
        site.chmod("wg0.conf", mode);
        site.refuses("wg0.conf", "holds a key but others may read it");
    }
    let site = Site::new();
    site.write("private.key", "yAnz5TF+lXXJte14tjlAlNrmRAfyiuDJ0vyQqyPSTEk=\n", 0o640);
    let toml = "[tunnel]\ninterface = \"wg0\"\nprivate_key_file = \"private.key\"\n";
    site.write("killswitch.toml", toml, 0o644);
    site.refuses("private.key", "holds a key but others may read it (mode 0640)");
}

#[test]
fn a_wg_quick_file_without_keys_may_be_readable() {
    let site = Site::new();
    let public = WG_QUICK.replace("PrivateKey", "#");
    site.write("wg0.conf", public, 0o644);
    site.write("killswitch.toml", "[tunnel]\nkind = \"external\"\nconfig = \"wg0.conf\"\n", 0o644);
    assert_eq!(site.load(), "read");
}

#[test]
fn directories_that_others_can_write_are_refused() {
    let site = Site::new();
    let directory = site.0.path().to_owned();
    fs::set_permissions(&directory, Permissions::from_mode(0o770)).unwrap();
    let said = site.load();
    assert!(said.starts_with(&format!("{}: others than root", directory.display())), "{said}");
    fs::set_permissions(&directory, Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(site.load(), "read");
}

#[test]
fn symbolic_links_are_refused() {
    for file in ["killswitch.toml", "wg0.conf"] {
        let site = Site::new();
        fs::rename(site.path(file), site.path("elsewhere")).unwrap();
        symlink("elsewhere", site.path(file)).unwrap();
        site.refuses(file, "a symbolic link, which is not followed");
        assert!(site.load().contains("points to elsewhere"));
    }
}

#[test]
fn what_is_not_a_regular_file_is_refused_at_once() {
    for file in ["killswitch.toml", "wg0.conf"] {
        let site = Site::new();
        fs::remove_file(site.path(file)).unwrap();
        fs::create_dir(site.path(file)).unwrap();
        site.refuses(file, "a directory, where a file is expected");

        let site = Site::new();
        fs::remove_file(site.path(file)).unwrap();
        mkfifo(&site.path(file), Mode::S_IRUSR).unwrap();
        site.refuses(file, "not a regular file");

        let site = Site::new();
        fs::remove_file(site.path(file)).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(site.path(file)).unwrap();
        site.refuses(file, "not a regular file");
    }
}

#[test]
fn huge_files_are_refused_at_once() {
    for file in ["killswitch.toml", "wg0.conf"] {
        let site = Site::new();
        File::options().write(true).open(site.path(file)).unwrap().set_len(100 << 20).unwrap();
        site.refuses(file, "too large: 104857600 bytes");
    }
    // Files of /proc have no size until they are read.
    assert!(!load(Path::new("/proc/kallsyms")).contains("read:"));
}

#[test]
fn binary_files_are_refused() {
    for file in ["killswitch.toml", "wg0.conf"] {
        for content in [&b"\x7fELF\xff\xfe"[..], b"[tunnel]\0"] {
            let site = Site::new();
            site.write(file, content, 0o600);
            site.refuses(file, "not a text file");
        }
    }
}

#[test]
fn drop_ins_are_checked_too() {
    let site = Site::new();
    fs::create_dir(site.path("killswitch.d")).unwrap();
    site.write("killswitch.d/10-lan.toml", "[allow]\nlan = [\"192.168.1.0/24\"]\n", 0o644);
    site.write("killswitch.d/20-empty.toml", "", 0o644);
    site.write("killswitch.d/.hidden.toml", "nonsense", 0o666);
    site.write("killswitch.d/notes.txt", "nonsense", 0o666);
    assert_eq!(site.load(), "read");
    site.chmod("killswitch.d/10-lan.toml", 0o646);
    site.refuses("killswitch.d/10-lan.toml", "others than root may write to it");
    site.chmod("killswitch.d/10-lan.toml", 0o644);
    site.chmod("killswitch.d", 0o777);
    site.refuses_directory();
    fs::remove_dir_all(site.path("killswitch.d")).unwrap();
    site.write("killswitch.d", "", 0o644);
    site.refuses("killswitch.d", "this directory cannot be read");
}

impl Site {
    #[track_caller]
    fn refuses_directory(&self) {
        let said = self.load();
        assert!(said.contains("others than root may write to this directory"), "{said}");
    }
}

#[test]
fn without_its_ending_a_file_has_drop_ins_under_its_whole_name() {
    let site = Site::new();
    site.write("lock.conf", "[tunnel]\nconfig = \"wg0.conf\"\n", 0o644);
    fs::create_dir(site.path("lock.conf.d")).unwrap();
    site.write("lock.conf.d/1.toml", "[lock]\nat_boot = false\n", 0o644);
    assert!(!config::load(&site.path("lock.conf")).unwrap().lock.at_boot);
}

#[test]
fn every_file_is_listed() {
    let site = Site::new();
    let config = config::load(&site.path("killswitch.toml")).unwrap();
    assert_eq!(config.files, [site.path("killswitch.toml"), site.path("wg0.conf")]);
}

#[test]
fn large_files_are_answered() {
    let megabyte = |unit: &str| unit.repeat((1 << 20) / unit.len() - 1);
    for text in [
        format!("a = {}", "[".repeat(1_000_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        format!("a{} = 1", ".a".repeat(500_000)),
        megabyte("[a.b]\n"),
        megabyte("=\n"),
        megabyte("\"\n"),
        (0..80_000).map(|number| format!("a{number}=1\n")).collect(),
        format!(
            "[tunnel]\nconfig = \"wg0.conf\"\n[allow]\nntp = [{}]",
            megabyte("\"9.9.9.9\",").split_at(1_000_000).0
        ),
        format!(
            "[tunnel]\nconfig = \"wg0.conf\"\n[allow]\nntp = [{}]",
            megabyte("\"9.9.9.9\",\n").split_at(999_990).0
        ),
    ] {
        let site = Site::new();
        site.write("killswitch.toml", &text, 0o600);
        site.load();
        site.write("killswitch.toml", "[tunnel]\nconfig = \"wg0.conf\"\n", 0o600);
        site.write("wg0.conf", &text, 0o600);
        assert_ne!(site.load(), "read");
    }
}

/// Of thousands of mistakes on one line fifty are shown, and the others only counted; what is shown
/// is no longer than a person reads.
#[test]
fn many_mistakes_on_one_line_take_no_longer_than_one() {
    let tunnel = "[tunnel]\nconfig = \"wg0.conf\"\n";
    let server = |endpoint: &str| {
        let endpoints = format!("\"{endpoint}\",").repeat(40_000);
        format!(
            "{tunnel}[[server]]\nname = \"a\"\nendpoints = [{endpoints}]\n\
             public_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"\n"
        )
    };
    let addresses = "\"10.64.0.2/32\",".repeat(40_000);
    let long = "a".repeat(500_000);
    for (toml, count) in [
        (server("192.0.2.1"), Some(39_950)),
        (server("192.0.2.1:5"), Some(39_949)),
        (format!("[tunnel]\ninterface = \"wg1\"\naddresses = [{addresses}]\n"), Some(39_951)),
        (format!("{tunnel}{long} = [{}]\n", "1,".repeat(200_000)), None),
        (format!("{tunnel}[allow]\nntp = [{{ \"{long}\" = 1 }}]\n"), None),
        (format!("[tunnel]\nconfig = \"{long}\"\n"), None),
    ] {
        let site = Site::new();
        site.write("killswitch.toml", &toml, 0o600);
        let begin = Instant::now();
        let said = site.load();
        let took = begin.elapsed();
        // Without optimisation reading such a file takes a second by itself.
        assert!(took < Duration::from_secs(10), "{took:?} for {}", &toml[..60]);
        assert!(said.len() < 30_000 && said.contains("killswitch.toml:"), "{} bytes", said.len());
        if let Some(count) = count {
            let end = format!("\n\n{count} more like these are not shown");
            assert!(said.ends_with(&end), "{}", &said[said.len() - 200..]);
        }
    }
}

#[test]
fn a_misspelt_server_gets_a_suggestion() {
    let site = Site::new();
    let more = "[[server]]\nname = \"se-sto-2\"\nendpoints = [\"198.51.100.8:51820\"]\n\
                public_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"\n";
    site.write("killswitch.toml", format!("[tunnel]\nconfig = \"wg0.conf\"\n{more}"), 0o644);
    let config = config::load(&site.path("killswitch.toml")).unwrap();
    assert_eq!(config.server_named("wg0"), Ok(0));
    assert_eq!(config.server_named("se-sto-2"), Ok(1));
    let refusal = |name: &str| config.server_named(name).unwrap_err();
    assert_eq!(
        refusal("se-sot-2"),
        "there is no server \"se-sot-2\"\nhelp: did you mean \"se-sto-2\"?"
    );
    let said = "there is no server \"us\"\nhelp: the configuration has wg0, se-sto-2";
    assert_eq!(refusal("us"), said);
    assert!(!refusal("a\u{1b}[2J").contains('\u{1b}'));
}
