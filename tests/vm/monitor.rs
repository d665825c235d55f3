//! QEMU's machine protocol: docs/interop/qmp-spec of QEMU.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use killswitch::lab::{Context, Error, Result};
use serde_json::{Value, json};

use super::machine::PATIENCE;

/// A connection to it.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    events: Vec<String>,
}

impl Monitor {
    /// Waits until QEMU listens.
    ///
    /// # Errors
    /// If it does not within half a minute.
    pub fn connect(socket: &Path) -> Result<Self> {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > Duration::from_secs(30) => {
                    return Err(Error::new(format!("QEMU does not start: {error}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).during("QEMU's monitor")?;
        let mut monitor = Monitor { stream: BufReader::new(stream), events: Vec::new() };
        monitor.read()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// A command, and what it returns.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let words = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{words}").during("QEMU's monitor")?;
        loop {
            let mut heard = self.read()?;
            if let Some(error) = heard.get("error") {
                return Err(Error::new(format!("QEMU: {command}: {error}")));
            }
            if let Some(value) = heard.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Waits for an event, unless it has come since the last wait for it.
    ///
    /// # Errors
    /// If it does not come.
    pub fn wait_for(&mut self, event: &str) -> Result<()> {
        while !self.events.iter().any(|one| one == event) {
            self.read()?;
        }
        self.events.retain(|one| one != event);
        Ok(())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).during("QEMU's monitor")?;
        let value: Value = serde_json::from_str(&line).during(format!("QEMU's monitor: {line}"))?;
        if let Some(event) = value["event"].as_str() {
            self.events.push(event.into());
        }
        Ok(value)
    }
}
