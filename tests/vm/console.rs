//! A root shell on the machine's second serial port: systemd's debug shell, which is there early and
//! stays to the end, whatever target is reached.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use killswitch::lab::{Context, Error, Result};

/// What a command in the machine left.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it printed, errors included.
    pub text: String,
}

/// A shell that answers.
pub struct Shell(UnixStream);

impl Shell {
    /// Waits until it answers; `first`: it has yet to start, and will prompt.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn open(socket: &Path, first: bool, patience: Duration) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).during("the console")?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).during("the console")?;
        // A port that nobody has opened yet may stay deaf if it is spoken to.
        if first {
            hear(&mut stream, patience, |heard| contains(heard, b"# "))?;
        }
        let begin = Instant::now();
        // What is sent before the shell is there may be lost.
        let mut number = 0;
        while !greet(&mut stream, number)? {
            number += 1;
            if begin.elapsed() > patience {
                return Err(Error::new("no shell on the console"));
            }
        }
        Ok(Shell(stream))
    }

    /// Runs a script, and waits for its end.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn ask(&mut self, script: &str, patience: Duration) -> Result<Answer> {
        // A terminal's line has at most 4096 bytes.
        const LINE: usize = 3000;
        let script = Base64::encode_string(script.as_bytes());
        let mut lines = String::from(": >/run/vm-script\n");
        for piece in script.as_bytes().chunks(LINE) {
            let piece = std::str::from_utf8(piece).during("base64")?;
            lines.push_str(&format!("printf %s {piece} >>/run/vm-script\n"));
        }
        lines.push_str(
            "base64 -d /run/vm-script >/run/vm-script.sh; sh /run/vm-script.sh >/run/vm-answer 2>&1 </dev/null; \
             printf '\\001%d ' $?; base64 -w0 /run/vm-answer; printf '\\002'\n",
        );
        self.0.write_all(lines.as_bytes()).during("the machine's console")?;
        let answer = read_answer(&mut self.0, patience)?;
        let (status, text) = answer.split_once(' ').unwrap_or((answer.as_str(), ""));
        let text =
            Base64::decode_vec(text).map_err(|error| Error::new(format!("{answer}: {error}")))?;
        Ok(Answer {
            status: status.parse().during("an exit status")?,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

/// Without echo, prompt and line editing. The answer to the last greeting shows that none is still to
/// be read; its marks are written so that their echo is not taken for them.
fn greet(shell: &mut UnixStream, number: u32) -> Result<bool> {
    let hello = format!("\nexec sh\nstty -echo; PS1= PS2=; printf '\\001%s\\002' {number}\n");
    shell.write_all(hello.as_bytes()).during("the console")?;
    let answer = format!("\u{1}{number}\u{2}").into_bytes();
    // Ever longer: a slow machine must be able to answer the last one.
    let patience = Duration::from_secs(1 + u64::from(number));
    let heard = hear(shell, patience, |heard| contains(heard, &answer))?;
    Ok(contains(&heard, &answer))
}

fn read_answer(shell: &mut UnixStream, patience: Duration) -> Result<String> {
    let heard = hear(shell, patience, |heard| between_marks(heard).is_some())?;
    between_marks(&heard).map(|answer| String::from_utf8_lossy(answer).into_owned()).ok_or_else(
        || {
            let heard = String::from_utf8_lossy(&heard);
            Error::new(format!("no answer on the console: {heard}"))
        },
    )
}

/// What the last command printed.
fn between_marks(heard: &[u8]) -> Option<&[u8]> {
    let begin = heard.iter().rposition(|byte| *byte == 1)?;
    let length = heard[begin..].iter().position(|byte| *byte == 2)?;
    Some(&heard[begin + 1..begin + length])
}

fn contains(heard: &[u8], wanted: &[u8]) -> bool {
    heard.windows(wanted.len()).any(|window| window == wanted)
}

/// Listens until it has heard enough, or has no more patience.
fn hear(
    shell: &mut UnixStream,
    patience: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>> {
    let begin = Instant::now();
    let mut heard: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 65536];
    while begin.elapsed() < patience && !enough(&heard) {
        match shell.read(&mut buffer) {
            Ok(0) => return Err(Error::new("the machine is off")),
            Ok(length) => heard.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).during("the machine's console"),
        }
    }
    Ok(heard)
}
