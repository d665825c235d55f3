//! Threats 1 to 28 of SECURITY.md: each is seen to leak without the lock, then not with it.

#[path = "../common/mod.rs"]
mod common;
mod senders;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    harness::run(&[
        ("t01_packet_socket", senders::t01_packet_socket),
        ("t05_every_socket", senders::t05_every_socket),
    ])
}
