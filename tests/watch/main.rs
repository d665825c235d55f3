//! What the daemon is told of the kernel's changes, and who owns the tables.

mod blocked;
#[path = "../common/mod.rs"]
mod common;
mod network;
mod ownership;
mod roles;
mod sleep;
mod storm;
mod told;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    if let Some(code) = roles::play() {
        return code;
    }
    harness::run_with_slow(
        &[
            ("table_changes_of_others_are_told", told::table_changes_of_others_are_told),
            ("own_changes_are_not_told", told::own_changes_are_not_told),
            ("deleted_rules_and_routes_are_told", told::deleted_rules_and_routes_are_told),
            ("an_overrun_is_told_and_made_good", told::an_overrun_is_told_and_made_good),
            ("messages_of_others_are_not_events", told::messages_of_others_are_not_events),
            ("nothing_runs_while_nothing_happens", told::nothing_runs_while_nothing_happens),
            ("the_best_way_out", network::the_best_way_out),
            ("the_tunnels_link", network::the_tunnels_link),
            ("links_with_strange_names", network::links_with_strange_names),
            ("a_flush_leaves_what_is_owned", ownership::a_flush_leaves_what_is_owned),
            ("ownership_outlives_the_daemon", ownership::ownership_outlives_the_daemon),
            ("orphans_are_taken_without_a_leak", ownership::orphans_are_taken_without_a_leak),
            (
                "the_static_lock_is_replaced_without_a_leak",
                ownership::the_static_lock_is_replaced_without_a_leak,
            ),
            ("another_owner_is_named", ownership::another_owner_is_named),
            ("holding_what_holds_is_cheap", ownership::holding_what_holds_is_cheap),
            ("logind_tells_of_waking", sleep::logind_tells_of_waking),
            (
                "local_senders_are_told_with_their_user",
                blocked::local_senders_are_told_with_their_user,
            ),
            (
                "behind_a_routing_guard_only_what_passes_it_is_told",
                blocked::behind_a_routing_guard_only_what_passes_it_is_told,
            ),
            ("frames_are_told", blocked::frames_are_told),
            ("forwarded_packets_are_told", blocked::forwarded_packets_are_told),
            (
                "what_does_not_want_to_leave_is_not_told",
                blocked::what_does_not_want_to_leave_is_not_told,
            ),
            (
                "senders_that_wait_are_told_with_their_group",
                blocked::senders_that_wait_are_told_with_their_group,
            ),
            ("a_group_has_one_reader", blocked::a_group_has_one_reader),
            ("without_a_reader_nothing_changes", blocked::without_a_reader_nothing_changes),
            (
                "a_lock_without_log_is_intact_but_degraded",
                blocked::a_lock_without_log_is_intact_but_degraded,
            ),
            ("an_overrun_is_counted", blocked::an_overrun_is_counted),
            (
                "nobody_wakes_while_nothing_is_blocked",
                blocked::nobody_wakes_while_nothing_is_blocked,
            ),
            ("a_flood_is_told_a_little_at_a_time", blocked::a_flood_is_told_a_little_at_a_time),
            ("storm", storm::storm),
        ],
        &[
            ("storm_of_a_million_slow", storm::storm_of_a_million_slow),
            ("a_flood_of_a_million_slow", blocked::a_flood_of_a_million_slow),
        ],
    )
}
