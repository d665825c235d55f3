//! The tunnel's edge: a userspace WireGuard of its own, driven against the laboratory's servers.

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    harness::run(&[])
}
