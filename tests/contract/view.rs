//! `status --watch` on a terminal of its own.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use killswitch::lab::harness::{Failed, Outcome, eventually};
use killswitch::lab::{Context, Result};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::machine::{Machine, PROGRAM, failed};

const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

/// The view on a terminal.
struct View {
    terminal: std::fs::File,
    /// The program's side, which outlives it here: what is left in it can be looked at.
    line: std::fs::File,
    before: Termios,
    shown: Receiver<Vec<u8>>,
    text: String,
    child: Child,
}

impl View {
    /// In a session of its own, so that what is typed can be a signal; with no signal ignored, as what a
    /// shell starts behind itself has SIGINT (POSIX, 2.11).
    fn open(
        machine: &Machine,
        columns: u16,
        rows: u16,
        plain: bool,
    ) -> std::result::Result<Self, Failed> {
        let OpenptyResult { master, slave } = openpty(None, None)?;
        tcsetwinsize(&master, size(columns, rows))?;
        let line = std::fs::File::from(slave);
        let before = tcgetattr(&line)?;
        let mut command = Command::new("env");
        command
            .args(["--default-signal", "setsid", "-c", PROGRAM, "--config"])
            .arg(machine.path("killswitch.toml"));
        command.args(["status", "--watch"]).env_remove("NO_COLOR").env("TERM", "xterm");
        if plain {
            command.env("NO_COLOR", "1");
        }
        let end = || line.try_clone().map(Stdio::from);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let child = machine.host.run(|| command.spawn())??;
        let terminal = std::fs::File::from(master);
        let mut reader = terminal.try_clone()?;
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut part) {
                if sender.send(part[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(View { terminal, line, before, shown, text: String::new(), child })
    }

    /// Waits until what was shown since the last time holds this.
    fn shows(&mut self, words: &str) -> Result<String> {
        eventually(&format!("{words:?} is shown"), || {
            self.shown.try_iter().for_each(|part| self.text += &String::from_utf8_lossy(&part));
            Ok(self.text.contains(words))
        })
        .during(format!("{:?}", self.text))?;
        Ok(std::mem::take(&mut self.text))
    }

    fn resize(&self, columns: u16, rows: u16) -> Outcome {
        Ok(tcsetwinsize(&self.terminal, size(columns, rows))?)
    }

    fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end; the terminal must be as it was.
    fn ends(mut self) -> std::result::Result<ExitStatus, Failed> {
        let text = self.shows(CLOSE)?;
        let mut ended = None;
        eventually("the view ends", || {
            ended = self.child.try_wait().during("the view")?;
            Ok(ended.is_some())
        })?;
        let rest = text.split(CLOSE).nth(1).unwrap_or_default();
        assert!(!rest.contains('\x1b'), "{rest:?}");
        let now = tcgetattr(&self.line)?;
        assert_eq!(now.local_modes, self.before.local_modes);
        ended.ok_or_else(|| failed("it did not end"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// The lines of the last picture.
fn picture(text: &str) -> Vec<String> {
    let last = text.rsplit("\x1b[H").next().unwrap_or_default();
    last.split("\r\n").map(|line| line.replace("\x1b[K", "")).collect()
}

pub fn it_lives() -> Outcome {
    let machine = Machine::new()?;
    let mut view = View::open(&machine, 100, 30, true)?;
    let begin = view.shows("q quits")?;
    assert!(begin.starts_with(OPEN), "{begin:?}");
    assert!(begin.contains("open: not locked; everything may leave in clear"), "{begin:?}");
    machine.killswitch(&["lock"])?.exits(0);
    view.shows("blocked: locked, no tunnel")?;
    // What was dropped before does not count, what is dropped now does.
    view.shows("nothing was dropped since this view began\r\n\x1b[K\r\n\x1b[Kq quits")?;
    machine.host.output("ping", &["-c1", "-W1", "-I", "eth0", "192.168.1.1"])?;
    view.shows("output: blocked: ")?;
    machine.configure("nonsense")?;
    view.shows("degraded: the configuration cannot be used")?;
    view.terminal.write_all(b"q")?;
    assert_eq!(view.ends()?.code(), Some(30));
    Ok(())
}

/// However it is ended, the terminal is as it was, and whoever waits learns by which signal.
pub fn the_terminal_is_given_back() -> Outcome {
    let machine = Machine::new()?;
    let begun = || -> std::result::Result<View, Failed> {
        let mut view = View::open(&machine, 80, 24, true)?;
        view.shows("q quits")?;
        let now = tcgetattr(&view.line)?;
        assert_ne!(now.local_modes, view.before.local_modes, "keys are not shown");
        Ok(view)
    };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let view = begun()?;
        view.signal(signal)?;
        assert_eq!(view.ends()?.signal(), Some(signal as i32), "{signal}");
    }
    let mut view = begun()?;
    view.terminal.write_all(b"\x03")?;
    assert_eq!(view.ends()?.signal(), Some(Signal::SIGINT as i32));
    let mut view = begun()?;
    view.terminal.write_all(b"jklq")?;
    assert_eq!(view.ends()?.code(), Some(20));
    Ok(())
}

/// Stopped, it leaves the terminal to the shell; going on, it takes it again.
pub fn it_stops_and_goes_on() -> Outcome {
    let machine = Machine::new()?;
    let mut view = View::open(&machine, 80, 24, true)?;
    view.shows("q quits")?;
    view.signal(Signal::SIGTSTP)?;
    view.shows(CLOSE)?;
    assert_eq!(tcgetattr(&view.line)?.local_modes, view.before.local_modes);
    let path = format!("/proc/{}/stat", view.child.id());
    eventually("it is stopped", || {
        Ok(std::fs::read_to_string(&path).during(&path)?.contains(") T "))
    })?;
    view.signal(Signal::SIGCONT)?;
    view.shows(OPEN)?;
    view.shows("q quits")?;
    view.terminal.write_all(b"q")?;
    assert_eq!(view.ends()?.code(), Some(20));
    Ok(())
}

pub fn it_fits_the_terminal() -> Outcome {
    let machine = Machine::new()?;
    let mut view = View::open(&machine, 80, 24, true)?;
    let whole = picture(&view.shows("q quits\r\n\x1b[J")?);
    assert!(whole.contains(&"tunnel    wg0 down or absent".to_owned()), "{whole:?}");
    view.resize(18, 4)?;
    let small = picture(&view.shows("more lines)")?);
    assert_eq!(small.len(), 4, "{small:?}");
    assert_eq!(small[0], "open: not locked; ", "{small:?}");
    view.resize(60, 24)?;
    view.shows("q quits")?;
    view.terminal.write_all(b"q")?;
    view.ends()?;
    Ok(())
}

pub fn it_has_colours_unless_told_otherwise() -> Outcome {
    let machine = Machine::new()?;
    for plain in [false, true] {
        let mut view = View::open(&machine, 80, 24, plain)?;
        let shown = view.shows("q quits")?;
        assert_eq!(shown.contains("\x1b[31m"), !plain, "{shown:?}");
        view.terminal.write_all(b"q")?;
        view.ends()?;
    }
    Ok(())
}
