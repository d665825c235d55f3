//! Every exit status, and the document of a failure.

use std::process::{Command, Stdio};

use killswitch::cli::args::EXIT_STATUS;
use killswitch::lab::harness::Outcome;
use serde_json::Value;

use crate::machine::{
    Machine, PRIVATE_KEY, Run, TUNNEL, failed, public_program, without_privileges,
};

/// A failure as a script sees it and as a person does: one document, the same words.
#[track_caller]
fn is_told_twice(run: &Run, code: i32) -> Value {
    assert_eq!(run.code, code, "{run:?}");
    let document = run.json();
    let error = &document["error"];
    assert_eq!(error["code"], code, "{run:?}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty() && !message.contains("help: "), "{run:?}");
    for line in message.lines().chain(error["help"].as_str().into_iter().flat_map(str::lines)) {
        assert!(run.err.contains(line.trim()), "{line:?} is not on standard error: {run:?}");
    }
    document
}

/// Every command that can fail for a reason of this kind: (exit status, arguments).
const FAILING: [(i32, &[&str]); 24] = [
    (2, &[]),
    (2, &["bogus"]),
    (2, &["statsu"]),
    (2, &["lock", "--force"]),
    (2, &["rules", "--format", "xml"]),
    (2, &["explain", "--to", "1.1.1.1"]),
    (2, &["explain", "--out", "eth0", "--to", "1.1.1.1", "--port", "99999"]),
    (2, &["unlock"]),
    (2, &["connect", "one", "two"]),
    (2, &["completions", "tcsh"]),
    // No daemon runs here.
    (1, &["connect"]),
    (1, &["connect", "se-sto-1"]),
    (1, &["disconnect"]),
    (1, &["reconnect"]),
    (1, &["monitor"]),
    (78, &["lock"]),
    (78, &["lock", "--boot"]),
    (78, &["reload"]),
    (78, &["check"]),
    (78, &["plan"]),
    (78, &["rules"]),
    (78, &["servers"]),
    (78, &["check", "/nonexistent"]),
    (78, &["plan", "--exit-code", "/nonexistent"]),
];

pub fn every_failure_is_a_document() -> Outcome {
    let machine = Machine::new()?;
    for (code, arguments) in FAILING {
        if code == 78 {
            machine.configure("nonsense")?;
        }
        let plain = machine.killswitch(arguments)?;
        assert_eq!(plain.code, code, "{arguments:?}: {plain:?}");
        assert!(plain.out.is_empty() && !plain.err.is_empty(), "{arguments:?}: {plain:?}");
        // Before the command and, as far as there is one, after it.
        let before: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        let after: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
        for words in [before, after] {
            is_told_twice(&machine.killswitch(&words)?, code);
        }
    }
    Ok(())
}

/// A command's own document stays whole, and gets the error besides.
pub fn a_failing_check_says_all_it_found() -> Outcome {
    let machine = Machine::new()?;
    machine.configure(&TUNNEL.replace("interface =", "interfase =").replace("51820", "0"))?;
    let document = is_told_twice(&machine.killswitch(&["--json", "check"])?, 78);
    assert_eq!(document["valid"], false, "{document}");
    assert_eq!(document["errors"].as_array().map(Vec::len), Some(2), "{document}");
    assert!(document["error"]["help"].as_str().is_some_and(|it| it.contains("server's port")));
    Ok(())
}

/// Whoever may not is told so by 4, and by 30 where it is the state that cannot be told.
pub fn what_is_not_permitted_is_a_document() -> Outcome {
    let machine = Machine::new()?;
    let program = public_program(&machine)?;
    // Not even by its owner without capabilities.
    machine.write("private.key", PRIVATE_KEY, 0o000)?;
    for (code, arguments) in [
        (4, &["--json", "check"][..]),
        (4, &["--json", "rules"]),
        (4, &["--json", "servers"]),
        (4, &["--json", "explain", "--out", "eth0", "--to", "1.1.1.1"]),
        (4, &["--json", "lock"]),
        (4, &["--json", "lock", "--boot"]),
        (4, &["--json", "unlock", "--yes"]),
        (4, &["--json", "reload"]),
        (4, &["--json", "plan"]),
        (4, &["--json", "daemon"]),
        (30, &["--json", "status"]),
        (30, &["--json", "status", "--watch"]),
    ] {
        let mut command = Command::new(&program);
        command.args(machine.command(arguments).get_args());
        let run = machine.run(without_privileges(command))?;
        let document = is_told_twice(&run, code);
        assert!(document["error"]["help"].as_str().is_some_and(|it| it.contains("as root")));
        let one_line = run.out.trim_end().lines().count() == 1;
        assert_eq!(one_line, arguments.contains(&"--watch"), "{run:?}");
        // What may not be read is neither valid nor wrong.
        assert!(document["valid"].is_null(), "{run:?}");
    }
    // What can be read is wrong all the same.
    machine.configure(&TUNNEL.replace(":51820", ""))?;
    let mut command = Command::new(&program);
    command.args(machine.command(&["--json", "check"]).get_args());
    let document = is_told_twice(&machine.run(without_privileges(command))?, 78);
    assert_eq!(document["valid"], false, "{document}");
    Ok(())
}

/// What is told by tests of their own: 0 everywhere, 4 above, those of `status` in `output`.
pub fn every_exit_status_is_tested() -> Outcome {
    let tested: Vec<i32> = FAILING.iter().map(|(code, _)| *code).chain([0, 4]).collect();
    for (code, meaning) in EXIT_STATUS {
        if !tested.contains(&code.into()) {
            return Err(failed(format!("{code} ({meaning}) is not tested")));
        }
    }
    Ok(())
}

pub fn a_misspelt_word_gets_a_suggestion() -> Outcome {
    let machine = Machine::new()?;
    for (typed, meant) in [
        (&["statsu"][..], "'status'"),
        (&["unlok"], "'unlock'"),
        (&["lock", "--yess"], "'--yes'"),
        (&["rules", "--format", "jsn"], "'json'"),
        (&["--jsn", "status"], "'--json'"),
    ] {
        machine.killswitch(typed)?.exits(2).complains(&["tip: ", meant]);
        let json: Vec<&str> = typed.iter().chain(&["--json"]).copied().collect();
        let document = machine.killswitch(&json)?.exits(2).json();
        let help = document["error"]["help"].as_str().unwrap_or_default();
        assert!(help.contains(meant), "{typed:?}: {document}");
    }
    Ok(())
}

/// A document to a line, whatever becomes of the configuration.
pub fn a_stream_goes_on_where_the_file_is_broken() -> Outcome {
    let machine = Machine::new()?;
    let mut command = machine.command(&["--json", "status", "--watch"]);
    command.stdout(Stdio::piped());
    let mut watching = machine.host.start(command)?;
    let out = watching.child().stdout.take().ok_or_else(|| failed("no pipe"))?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(out));
    for number in 0..3 {
        let line = lines.next().ok_or_else(|| failed("it ended"))??;
        let status: Value = serde_json::from_str(&line)?;
        let complains =
            status["degraded"][0].as_str().is_some_and(|it| it.contains("cannot be used"));
        assert_eq!(complains, number > 0, "{status}");
        machine.configure("nonsense")?;
    }
    Ok(())
}
