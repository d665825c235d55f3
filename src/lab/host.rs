//! Machines of the laboratory: each is a network namespace, held by a file descriptor.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};

use super::error::{Context, Error, Result};
use super::namespaces;

/// One machine.
#[derive(Debug, Clone)]
pub struct Host {
    name: &'static str,
    namespace: Arc<OwnedFd>,
}

/// Tells a [`Worker`] to come to an end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

/// A long-lived thread inside a [`Host`]; told to stop and joined when dropped.
#[derive(Debug)]
pub struct Worker<T = ()> {
    stop: Stop,
    thread: Option<JoinHandle<T>>,
}

/// A long-lived child process inside a [`Host`]; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Stop {
    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<T> Worker<T> {
    /// Asks the thread to end, without waiting for it.
    pub fn request_stop(&self) {
        self.stop.request();
    }

    /// Ends the thread and returns what it leaves.
    ///
    /// # Errors
    /// If it panicked.
    pub fn stop(mut self) -> Result<T> {
        self.stop.request();
        let thread = self.thread.take().ok_or_else(|| Error::new("a thread was joined twice"))?;
        thread.join().map_err(|_| Error::new("a thread of the laboratory panicked"))
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Process {
    /// The child.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// A new machine with nothing but a loopback link, which is up.
    ///
    /// # Errors
    /// Those of `unshare(2)`; if the caller is still in the machine's own network.
    pub fn new(name: &'static str) -> Result<Self> {
        let namespace = std::thread::scope(|scope| scope.spawn(make_namespace).join())
            .map_err(|_| Error::new("making a namespace panicked"))?
            .during(format!("making the namespace of {name}"))?;
        let host = Host { name, namespace: Arc::new(namespace) };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A path that `ip link ... netns PATH` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside that runs until it is told to stop.
    ///
    /// # Errors
    /// If no thread can be started; a thread that cannot enter the namespace returns `None`.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(Stop) -> T + Send + 'static,
    ) -> Result<Worker<Option<T>>> {
        let stop = Stop::default();
        let (host, theirs) = (self.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || host.enter().ok().map(|()| work(theirs)))
            .during(format!("starting {name} in {}", self.name))?;
        Ok(Worker { stop, thread: Some(thread) })
    }

    /// Runs a program inside and waits for it: its output, whatever its exit status.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.run(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .during(format!("starting {program} in {}", self.name))
        })?
    }

    /// Runs a program inside that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// If it cannot be started or fails, with its own words.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.run(|| run_here(program, arguments))?.during(self.name)
    }

    /// Starts a program inside.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Process> {
        let child = self.run(|| command.spawn())?;
        child.map(Process).during(format!("starting {:?} in {}", command.get_program(), self.name))
    }

    /// Runs commands of `ip -batch` inside, one to a line. It stops at the first that fails.
    ///
    /// # Errors
    /// That command's own words.
    pub fn ip(&self, commands: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], commands).during(format!("ip -batch:\n{commands}"))
    }

    /// Runs a program inside that reads `input` and must succeed.
    ///
    /// # Errors
    /// If it cannot be started or fails, with its own words.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .during(format!("starting {program}"))?;
            if let Some(mut pipe) = child.stdin.take() {
                // A program that stops early closes the pipe; its status says why.
                let _ = pipe.write_all(input.as_bytes());
            }
            judge(program, arguments, &child.wait_with_output().during(program)?).map(drop)
        })?
        .during(self.name)
    }

    /// Writes a setting, e.g. `("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value))?.during(format!("{}: {path}", self.name))
    }

    /// Whether a link of this name is there.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn has_link(&self, name: &str) -> Result<bool> {
        self.run(|| nix::net::if_::if_nametoindex(name).is_ok())
    }

    fn enter(&self) -> Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)
            .during(format!("entering {}", self.name))?;
        namespaces::assert_private()
    }
}

/// Runs a program in the caller's namespace, which must be a private one.
pub(super) fn run_here(program: &str, arguments: &[&str]) -> Result<String> {
    namespaces::assert_private()?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .during(format!("starting {program}"))?;
    judge(program, arguments, &output)
}

fn judge(program: &str, arguments: &[&str], output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::new(format!(
        "`{program} {}` failed ({}): {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn make_namespace() -> Result<OwnedFd> {
    namespaces::assert_private()?;
    unshare(CloneFlags::CLONE_NEWNET).during("unshare")?;
    Ok(File::open("/proc/thread-self/ns/net").during("/proc/thread-self/ns/net")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit tests run in the machine's own network: the very place to refuse.
    #[test]
    fn no_host_is_made_from_the_machines_own_network() {
        let error = Host::new("client").expect_err("a refusal");
        assert!(error.to_string().contains("refusing"), "{error}");
        let error = run_here("ip", &["link"]).expect_err("a refusal");
        assert!(error.to_string().contains("refusing"), "{error}");
    }
}
