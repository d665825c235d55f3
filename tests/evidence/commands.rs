//! What commands record where no daemon runs, and what is said of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use killswitch::lab::harness::{Outcome, Test};
use serde_json::json;

use crate::journal::{self, DIRECTORY, PENDING, begin_anew, edit, entries, events, files, last};
use crate::machine::{
    Machine, PRESHARED_KEY, PRIVATE_KEY, TUNNEL, public_program, without_privileges,
};

pub const TESTS: &[Test] = &[
    ("commands::who_where_and_why", who_where_and_why),
    ("commands::a_boot_is_recorded_once_there_is_a_place", boot),
    ("commands::every_edit_is_found_and_named", edits),
    ("commands::the_manuals_loop_needs_no_program_of_ours", the_manuals_loop),
    ("commands::an_export_can_be_verified_elsewhere", export),
    ("commands::several_at_the_same_time", several),
    ("commands::only_root_reads_it", only_root),
];

fn who_where_and_why() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    machine.killswitch(&["evidence", "verify"])?.exits(30).complains(&["no journal"]);
    let mut lock = machine.command(&["lock", "--yes"]);
    lock.env("SSH_CONNECTION", "192.0.2.9 50000 192.168.1.50 22");
    machine.run(lock)?.exits(0);
    let reason = "the \"printer\"\u{1b}[2J";
    machine.killswitch(&["unlock", "--yes", "--reason", reason])?.exits(0);
    assert_eq!(events()?, ["command", "lock", "command", "unlock"]);
    let all = entries()?;
    assert_eq!(all[0]["by"]["ssh"], "192.0.2.9");
    let (locked, unlocked) = (&all[1], &all[3]);
    assert_eq!([&locked["through"], &locked["changed"]], [&json!("kernel"), &json!(true)]);
    let hash = locked["ruleset"].as_str().unwrap_or_default();
    assert_eq!(hash.len(), 64, "{locked}");
    assert_eq!([&unlocked["reason"], &unlocked["changed"]], [&json!(reason), &json!(true)]);
    let by = &unlocked["by"];
    assert_eq!(
        [&by["uid"], &by["user"], &by["program"]],
        [&json!(0), &json!("root"), &json!("killswitch")],
        "{by}"
    );
    assert_eq!(by["pid"], unlocked["writer"], "{unlocked}");
    assert!(by["parent"].is_string(), "{by}");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    assert_eq!(unlocked["boot_id"], boot.trim());
    assert!(unlocked["boottime_us"].as_u64() > locked["boottime_us"].as_u64());

    let shown = machine.killswitch(&["evidence", "show"])?.exits(0).out;
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.contains("unlock") && shown.contains("printer"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "a reason steers the terminal: {shown:?}");
    let last_one = machine.killswitch(&["--json", "evidence", "show", "--last", "1"])?.exits(0);
    assert_eq!(&last_one.json(), unlocked);
    let shown = |since: &str| machine.killswitch(&["evidence", "show", "--since", since]);
    assert_eq!(shown("1h")?.exits(0).out.lines().count(), 4);
    assert_eq!(shown("2100-01-01")?.exits(0).out, "");
    shown("yesterday")?.exits(2).complains(&["--since", "UTC"]);
    let verified = machine.killswitch(&["--json", "evidence", "verify"])?.exits(0).json();
    assert_eq!(
        [&verified["verdict"], &verified["entries"], &verified["waiting"]],
        [&json!("whole"), &json!(4), &json!(0)]
    );
    // The rules that were held can be found again by their hash.
    let rules = machine.killswitch(&["rules"])?.exits(0).out;
    machine.write("rules.nft", rules, 0o600)?;
    let path = machine.path("rules.nft").display().to_string();
    let sum = machine.host.command("sha256sum", &[&path])?;
    assert!(sum.starts_with(hash), "{sum} {hash}");
    let text = files().iter().map(fs::read_to_string).collect::<Result<String, _>>()?;
    assert!(!text.contains(PRIVATE_KEY) && !text.contains(PRESHARED_KEY), "{text}");
    Ok(())
}

/// At boot /var is not there: what is mounted over it would hide what is written below.
fn boot() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    fs::remove_dir("/var/lib/laboratory")?;
    let _ = fs::remove_dir("/var/lib/killswitch");
    machine.killswitch(&["lock", "--boot"])?.exits(0);
    machine.killswitch(&["lock"])?.exits(0);
    assert!(!Path::new("/var/lib/killswitch").exists());
    let waiting = fs::read_to_string(PENDING)?;
    assert_eq!(waiting.lines().count(), 3, "{waiting}");
    let shown = machine.killswitch(&["evidence", "show"])?.exits(0).out;
    assert!(shown.contains("through boot"), "{shown}");
    fs::create_dir("/var/lib/laboratory")?;
    machine.configure("nonsense")?;
    machine.killswitch(&["lock", "--boot"])?.exits(78);
    machine.configure(TUNNEL)?;
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert_eq!(
        events()?,
        ["lock", "command", "lock", "failed", "lock", "command", "unlock"],
        "in the order in which it happened"
    );
    assert_eq!(entries()?[0]["through"], "boot");
    machine.killswitch(&["evidence", "verify"])?.exits(0);
    Ok(())
}

fn edits() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    for arguments in [&["lock"][..], &["unlock", "--yes", "--reason", "why"], &["lock"]] {
        machine.killswitch(arguments)?.exits(0);
    }
    let file = files().remove(0);
    let whole = fs::read_to_string(&file)?;
    let head =
        machine.killswitch(&["--json", "evidence", "verify"])?.exits(0).json()["head"].clone();
    let head = head.as_str().unwrap_or_default();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]].concat();
    let without = |line: usize| {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != line);
        kept.map(|(_, line)| *line).collect::<String>()
    };
    for (edited, place) in [
        // What was edited is seen where the next line does not follow it.
        (whole.replace("\"why\"", "\"who\""), ":4: "),
        (without(2), ":3: "),
        (swapped, ":2: "),
        (without(5), "ends before entry 6"),
        (without(0), "entries 1 to 1 are missing"),
        (whole.replace(lines[5], &lines[5].replace("true", "false")), "was noted"),
        (whole.trim_end().to_owned(), ":6: it has no end"),
        (format!("{whole}{}", lines[5]), ":7: "),
    ] {
        fs::write(&file, &edited)?;
        let run = machine.killswitch(&["--json", "evidence", "verify"])?.exits(1);
        assert!(run.err.contains(place), "{place:?} is not in {run:?}");
        assert_eq!(run.json()["verdict"], "broken");
    }
    fs::write(&file, &whole)?;
    machine.killswitch(&["evidence", "verify", "--head", head])?.exits(0);
    let early = "1:".to_owned() + entries()?[1]["previous"].as_str().unwrap_or_default();
    machine.killswitch(&["evidence", "verify", "--head", &early])?.exits(0);
    let other = format!("1:{}", "0".repeat(64));
    machine.killswitch(&["evidence", "verify", "--head", &other])?.exits(1).complains(&["noted"]);
    machine.killswitch(&["evidence", "verify", "--head", "1:2"])?.exits(2);
    // A cut is recorded by whoever writes next.
    edit(&file, |text| text.replace(lines[5], ""))?;
    machine.killswitch(&["unlock", "--yes"])?.exits(0);
    assert_eq!(last("cut")?["noted"], head);
    machine.killswitch(&["evidence", "verify"])?.exits(1).complains(&["cut or edited"]);
    Ok(())
}

/// As a reader sees it.
fn loop_of_the_manual() -> Result<String, killswitch::lab::harness::Failed> {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/man/killswitch.8");
    let output =
        Command::new("mandoc").args(["-T", "ascii", "-O", "width=120", manual]).output()?;
    let mut text = String::new();
    for letter in String::from_utf8(output.stdout)?.chars() {
        match letter {
            '\u{8}' => drop(text.pop()),
            letter => text.push(letter),
        }
    }
    let (_, after) = text.split_once("cat *.jsonl").ok_or("no loop in the manual")?;
    let end = after.find("ends with").and_then(|at| Some(at + after[at..].find('}')? + 1));
    Ok(format!("last=\ncat *.jsonl{}", &after[..end.ok_or("no end of the loop")?]))
}

fn the_manuals_loop() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["unlock", "--yes", "--reason", "a \\ b 'c' \"d\" %s $(e) *"])?.exits(0);
    let script = format!("set -e\ncd {DIRECTORY}\n{}", loop_of_the_manual()?);
    let verified = machine.killswitch(&["--json", "evidence", "verify"])?.exits(0).json();
    let (_, hash) = verified["head"].as_str().and_then(|it| it.split_once(':')).ok_or("no head")?;
    for shell in ["dash", "bash"] {
        let output = machine.host.output(shell, &["-c", &script])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(hash), "{shell}: {output:?}\n{script}");
    }
    edit(&files()[0], |text| text.replace("(e)", "(f)"))?;
    machine.killswitch(&["evidence", "verify"])?.exits(1);
    // The last line's edit shows by its hash, any other's by the line that follows.
    let output = machine.host.output("sh", &["-c", &script])?;
    assert!(!String::from_utf8_lossy(&output.stdout).contains(hash), "{output:?}");
    edit(&files()[0], |text| text.replace("(f)", "(e)").replacen("root", "toor", 1))?;
    let output = machine.host.output("sh", &["-c", &script])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("broken: {\"seq\":2,"), "{output:?}");
    Ok(())
}

fn export() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["unlock", "--yes", "--reason", "<b>why</b>"])?.exits(0);
    let file = machine.path("export.jsonl").display().to_string();
    let export = ["--json", "evidence", "export", "--output", &file];
    let said = machine.killswitch(&export)?.exits(0).json();
    assert_eq!(said["entries"], 4, "{said}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let whole = machine.killswitch(&["evidence", "export"])?.exits(0).out;
    assert_eq!(whole, fs::read_to_string(&file)?);
    let head = said["head"].as_str().unwrap_or_default();
    begin_anew()?;
    machine.killswitch(&["evidence", "verify", &file, "--head", head])?.exits(0);
    edit(Path::new(&file), |text| text.replace("why", "who"))?;
    machine.killswitch(&["evidence", "verify", &file, "--head", head])?.exits(1);
    edit(Path::new(&file), |text| text.replace("who", "why"))?;
    edit(Path::new(&file), |text| text.split_once('\n').unwrap_or_default().1.to_owned())?;
    // What came before may be elsewhere.
    machine
        .killswitch(&["evidence", "verify", &file])?
        .exits(30)
        .complains(&["1 to 1 are missing"]);
    machine.killswitch(&["evidence", "verify", "/nonexistent"])?.exits(30);

    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["unlock", "--yes", "--reason", "<b>why</b>"])?.exits(0);
    let page = machine.killswitch(&["evidence", "export", "--format", "html"])?.exits(0).out;
    assert!(page.contains("&lt;b&gt;why") && !page.contains("<b>why"), "{page}");
    assert!(page.contains("up to 4:"), "{page}");
    Ok(())
}

fn several() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    let mut running = Vec::new();
    for number in 0..12 {
        let reason = format!("number {number}");
        let arguments = match number % 2 {
            0 => vec!["lock"],
            _ => vec!["unlock", "--yes", "--reason", &reason],
        };
        running.push(machine.host.start(machine.command(&arguments))?);
    }
    for mut process in running {
        assert!(process.child().wait()?.success());
    }
    machine.killswitch(&["lock"])?.exits(0);
    machine.killswitch(&["evidence", "verify"])?.exits(0);
    let all = entries()?;
    let count = |event: &str| all.iter().filter(|it| it["event"] == event).count();
    assert_eq!((count("command"), count("lock"), count("unlock")), (13, 7, 6), "{all:#?}");
    for number in (1..12).step_by(2) {
        let reason = json!(format!("number {number}"));
        assert_eq!(all.iter().filter(|it| it["reason"] == reason).count(), 2, "{reason}");
    }
    Ok(())
}

fn only_root() -> Outcome {
    let machine = Machine::new()?;
    begin_anew()?;
    machine.killswitch(&["lock"])?.exits(0);
    let mode = |path: &Path| fs::metadata(path).map(|it| it.permissions().mode() & 0o777);
    assert_eq!(mode(Path::new(DIRECTORY))?, 0o700);
    assert_eq!(mode(&files()[0])?, 0o600);
    if !nix::unistd::geteuid().is_root() || !crate::daemon::has_nobody() {
        println!("skipped: there is nobody here who is not root");
        return Ok(());
    }
    let program = public_program(&machine)?;
    for (code, arguments) in [
        (4, &["evidence", "show"][..]),
        (30, &["evidence", "verify"]),
        (4, &["evidence", "export"]),
    ] {
        let mut command = Command::new(&program);
        command.args(machine.command(arguments).get_args());
        let run = machine.run(without_privileges(command))?.exits(code);
        assert!(run.out.is_empty() && run.err.contains("as root"), "{run:?}");
    }
    assert_eq!(journal::events()?, ["command", "lock"], "what is not root's is not believed");
    Ok(())
}
