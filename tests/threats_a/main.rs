//! Threats 1 to 28, 69 and 70 of SECURITY.md: each is seen to leak without the lock, then not with it.

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod guests;
mod neighbours;
mod reload;
mod senders;
mod tamper;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    harness::run_with_slow(
        &[
            ("t01_marked_packet_socket_to_a_server", senders::t01_marked_packet_socket_to_a_server),
            ("t01_packet_socket", senders::t01_packet_socket),
            (
                "t02_af_xdp_leaks_in_spite_of_the_lock",
                senders::t02_af_xdp_leaks_in_spite_of_the_lock,
            ),
            (
                "t03_mirred_leaks_in_spite_of_the_lock",
                senders::t03_mirred_leaks_in_spite_of_the_lock,
            ),
            (
                "t04_foreign_netdev_chain_forwards_to_the_link",
                senders::t04_foreign_netdev_chain_forwards_to_the_link,
            ),
            ("t05_every_socket", senders::t05_every_socket),
            ("t05_every_socket_by_the_table_alone", senders::t05_every_socket_by_the_table_alone),
            ("t06_answers_of_the_kernel", senders::t06_answers_of_the_kernel),
            (
                "t06_answers_of_the_kernel_by_the_table_alone",
                senders::t06_answers_of_the_kernel_by_the_table_alone,
            ),
            ("t07_arp", senders::t07_arp),
            ("t08_arp_for_the_tunnel_address", neighbours::t08_arp_for_the_tunnel_address),
            ("t09_probes_of_the_tunnel_address", neighbours::t09_probes_of_the_tunnel_address),
            ("t10_vxlan", senders::t10_vxlan),
            ("t11_a_local_program_is_told_at_once", senders::t11_a_local_program_is_told_at_once),
            ("t11_reject_stays_here", senders::t11_reject_stays_here),
            ("t12_routed_container", guests::t12_routed_container),
            (
                "t12_routed_container_by_the_table_alone",
                guests::t12_routed_container_by_the_table_alone,
            ),
            ("t13_container_bridged_with_the_link", guests::t13_container_bridged_with_the_link),
            ("t13_link_in_an_internal_bridge", guests::t13_link_in_an_internal_bridge),
            ("t14_macvlan_in_a_container", guests::t14_macvlan_in_a_container),
            ("t14_macvlan_made_under_the_lock", guests::t14_macvlan_made_under_the_lock),
            (
                "t15_link_moved_away_leaks_in_spite_of_the_lock",
                guests::t15_link_moved_away_leaks_in_spite_of_the_lock,
            ),
            ("t17_mark_on_macvlan", guests::t17_mark_on_macvlan),
            ("t17_mark_set_in_a_container", guests::t17_mark_set_in_a_container),
            (
                "t18_connections_from_outside_older_than_the_lock",
                connections::t18_connections_from_outside_older_than_the_lock,
            ),
            (
                "t18_connections_older_than_the_lock",
                connections::t18_connections_older_than_the_lock,
            ),
            (
                "t18_connections_older_than_the_lock_by_the_table_alone",
                connections::t18_connections_older_than_the_lock_by_the_table_alone,
            ),
            ("t19_inbound_service", connections::t19_inbound_service),
            (
                "t19_inbound_service_by_the_table_alone",
                connections::t19_inbound_service_by_the_table_alone,
            ),
            (
                "t20_old_sockets_bring_the_home_address_into_the_tunnel",
                connections::t20_old_sockets_bring_the_home_address_into_the_tunnel,
            ),
            ("t21_changes_within_the_table", tamper::t21_changes_within_the_table),
            ("t21_delete_egress_guard", tamper::t21_delete_egress_guard),
            ("t21_delete_table", tamper::t21_delete_table),
            ("t21_dormant", tamper::t21_dormant),
            ("t21_flush_ruleset", tamper::t21_flush_ruleset),
            (
                "t21_strictest_lock_gives_way_to_a_mended_configuration",
                tamper::t21_strictest_lock_gives_way_to_a_mended_configuration,
            ),
            ("t22_owner_gone", tamper::t22_owner_gone),
            ("t23_owned_tables_cannot_be_changed", tamper::t23_owned_tables_cannot_be_changed),
            ("t26_deleting_and_creating_leaks", reload::t26_deleting_and_creating_leaks),
            (
                "t26_egress_guard_reloaded_500_times_under_a_flood",
                reload::t26_egress_guard_reloaded_500_times_under_a_flood,
            ),
            (
                "t26_reloaded_by_the_program_under_a_flood",
                reload::t26_reloaded_by_the_program_under_a_flood,
            ),
            (
                "t26_table_reloaded_500_times_under_a_flood",
                reload::t26_table_reloaded_500_times_under_a_flood,
            ),
            ("t27_a_mistake_in_a_file_of_rules", tamper::t27_a_mistake_in_a_file_of_rules),
            ("t28_foreign_accepts", tamper::t28_foreign_accepts),
            ("t69_macvlan_in_disguise", guests::t69_macvlan_in_disguise),
            ("t69_packet_socket_in_disguise", senders::t69_packet_socket_in_disguise),
            (
                "t69_packet_socket_on_a_link_without_ethernet",
                senders::t69_packet_socket_on_a_link_without_ethernet,
            ),
            (
                "t70_checksum_rewrites_the_address_in_spite_of_the_lock",
                senders::t70_checksum_rewrites_the_address_in_spite_of_the_lock,
            ),
        ],
        &[
            (
                "t26_egress_guard_reloaded_10000_times_under_a_flood_slow",
                reload::t26_egress_guard_reloaded_10000_times_under_a_flood_slow,
            ),
            (
                "t26_table_reloaded_10000_times_under_a_flood_slow",
                reload::t26_table_reloaded_10000_times_under_a_flood_slow,
            ),
        ],
    )
}
