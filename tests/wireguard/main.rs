//! The tunnel's edge: a userspace WireGuard of its own, driven against the laboratory's servers.

mod cost;
mod foreign;
mod link;
mod session;
mod tunnel;

use killswitch::lab::harness;

/// Each test under its own name.
macro_rules! tests {
    ($($module:ident: $($test:ident),* $(,)?;)*) => {
        &[$($((stringify!($test), $module::$test as fn() -> harness::Outcome)),*),*]
    };
}

fn main() -> std::process::ExitCode {
    let tests: &[harness::Test] = tests! {
        link:
            a_link_is_made_as_configured,
            a_link_that_is_right_is_left_alone,
            foreign_settings_are_found_and_taken_away,
            what_somebody_changed_is_mended,
            a_new_daemon_adopts_a_working_session,
            a_program_that_dies_or_hangs_is_replaced,
            a_link_that_somebody_deleted_comes_back,
            nobody_else_can_read_a_key,
            the_program_outlives_us,
            without_wireguard_in_the_kernel_a_program_is_used,
            nothing_is_left_behind,
            without_ipv6_the_tunnel_has_ipv4,
            what_is_missing_is_said,
            a_card_that_takes_the_name_meanwhile_gets_no_address;
        session:
            each_setting_of_a_peer_is_a_new_session,
            a_peer_that_is_not_configured_is_no_candidate,
            a_handshake_begins_without_keepalives,
            a_living_server_answers_a_probe,
            a_dead_server_answers_no_probe,
            the_lock_lets_a_probe_through,
            the_alarm_tells_of_traffic_once_and_not_of_keepalives;
        foreign:
            a_foreign_link_is_put_aside,
            a_foreign_tun_link_is_put_aside,
            an_alternative_name_makes_way;
    };
    harness::run_with_slow(tests, tests! { cost: what_it_costs; })
}
