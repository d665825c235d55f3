//! D-Bus on the wire, without a library that would refuse to write nonsense.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use killswitch::dbus::{INTERFACE, NAME, PATH};
use nix::unistd::geteuid;
use zbus::message::{Builder, Message};

/// For an answer on a noisy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that has said who it is.
pub struct Wire(pub UnixStream);

/// What came.
pub struct Answer(Vec<u8>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Answer {
    /// Of a method that did what was asked.
    pub fn is_return(&self) -> bool {
        self.0[1] == 2
    }

    fn is_reply(&self) -> bool {
        matches!(self.0[1], 2 | 3)
    }

    /// Whether the bytes hold this text, e.g. an error's name.
    pub fn says(&self, text: &str) -> bool {
        self.0.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

impl Wire {
    /// Without a bus.
    pub fn peer(path: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&handshake())?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        match line.starts_with(b"OK ") {
            true => Ok(Wire(stream)),
            false => Err(io::Error::other(String::from_utf8_lossy(&line).into_owned())),
        }
    }

    /// On a bus.
    pub fn bus(path: &str) -> io::Result<Self> {
        let mut wire = Self::peer(path)?;
        let bus = "org.freedesktop.DBus";
        wire.send(&bytes(to(bus, "/org/freedesktop/DBus", bus, "Hello"), &()))?;
        wire.reply()?;
        Ok(wire)
    }

    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.0.write_all(message)
    }

    /// Sends it under another serial: of calls at the same time, each has its own.
    pub fn send_as(&mut self, message: &[u8], serial: u32) -> io::Result<()> {
        let mut message = message.to_vec();
        message[8..12].copy_from_slice(&serial.to_le_bytes());
        self.send(&message)
    }

    /// The next reply; signals are passed over.
    pub fn reply(&mut self) -> io::Result<Answer> {
        loop {
            let answer = self.message()?;
            if answer.is_reply() {
                return Ok(answer);
            }
        }
    }

    fn message(&mut self) -> io::Result<Answer> {
        let mut message = vec![0; 16];
        self.0.read_exact(&mut message)?;
        let length =
            |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|it| message[at + it])) as usize;
        let (body, fields) = (length(4), length(12));
        message.resize(16 + fields.next_multiple_of(8) + body, 0);
        self.0.read_exact(&mut message[16..])?;
        Ok(Answer(message))
    }
}

/// The D-Bus specification, "Authentication Protocol".
pub fn handshake() -> Vec<u8> {
    let uid: String = geteuid().to_string().bytes().map(|it| format!("{it:02x}")).collect();
    format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes()
}

/// A call of anything; a name in a wrong form is an error when it is built.
pub fn to<'a>(name: &'a str, path: &'a str, interface: &'a str, member: &'a str) -> Builder<'a> {
    Message::method_call(path, member).destination(name).interface(interface)
}

/// A call of ours.
pub fn ours(member: &str) -> Builder<'_> {
    to(NAME, PATH, INTERFACE, member)
}

/// A property of ours.
pub fn property() -> Vec<u8> {
    let builder = to(NAME, PATH, "org.freedesktop.DBus.Properties", "GetAll");
    bytes(builder, &INTERFACE)
}

pub fn bytes<B>(builder: Builder<'_>, body: &B) -> Vec<u8>
where
    B: serde::Serialize + zbus::DynamicType,
{
    builder.build(body).expect("a message").data().to_vec()
}
