//! The committed introspection is the live object's.

use std::path::Path;

use killswitch::lab::harness::{Outcome, Test};

use crate::caller::Caller;
use crate::stage::Stage;

pub const TESTS: &[Test] = &[("introspection_is_the_committed_one", committed)];

const FILE: &str = "packaging/dbus/org.killswitch1.Manager.xml";

/// Comments count: they are the interface's documentation. Only indentation does not.
fn committed() -> Outcome {
    let stage = Stage::set()?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    for caller in [&stage.caller, &Caller::at_the_socket()?] {
        let live: String =
            caller.call_of("org.freedesktop.DBus.Introspectable", "Introspect", &())?;
        let live = document(&live)?;
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(&file, &live)?;
        }
        let committed = std::fs::read_to_string(&file)?;
        assert!(
            lines(&committed).eq(lines(&live)),
            "{FILE} is not what the daemon says; if it shall be:\n\
             UPDATE_EXPECTED=1 cargo test --features lab --test dbus introspection\n\
             The daemon says:\n{live}"
        );
    }
    // Python's reader is strict, as not all are: no two dashes in a comment.
    let read = "import sys, xml.etree.ElementTree as tree; tree.parse(sys.argv[1])";
    let file = file.to_str().ok_or("a path that is not text")?;
    stage.lab.client.command("/usr/bin/python3", &["-c", read, file])?;
    Ok(())
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// Our interface alone, as files in /usr/share/dbus-1/interfaces have it: the others are zbus'.
fn document(introspection: &str) -> Result<String, &'static str> {
    let begin = introspection.find("<interface name=\"org.killswitch1.Manager\">");
    let begin = begin.ok_or("our interface is not there")?;
    let end = "</interface>";
    let length = introspection[begin..].find(end).ok_or("it has no end")? + end.len();
    Ok(format!(
        "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
         \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n\
         <node>\n  {}\n</node>\n",
        &introspection[begin..begin + length]
    ))
}
