//! Calls that no decent program makes, against the daemon on a real bus and at its control socket:
//! nothing of it crashes, grows, waits or changes anything.

mod bus;
mod callers;
mod flood;
mod socket;
mod stage;
mod wire;
mod wrong;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    if let Some(code) = callers::play() {
        return code;
    }
    harness::run(&[
        ("wrong_calls_change_nothing", wrong::wrong_calls_change_nothing),
        ("ten_thousand_calls_delay_nobody", flood::ten_thousand_calls_delay_nobody),
        ("large_calls_leave_nothing_behind", flood::large_calls_leave_nothing_behind),
        ("garbage_at_the_control_socket", socket::garbage_at_the_control_socket),
        ("a_thousand_connections_at_the_control_socket", socket::a_thousand_connections),
    ])
}
