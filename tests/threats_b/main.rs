//! Threats 29 to 50, 66 and 67, the bridges of containers and guests, and what the configuration
//! allows: each is first seen on the wire without the lock, or without the layer in question.

mod allow;
mod bridges;
#[path = "../common/mod.rs"]
mod common;
mod endpoint;
mod errors;
mod foreign;
mod forwarding;
mod leases;
mod links;
mod routes;
mod shot;
mod talk;

use killswitch::lab::harness::{self, Test};

const TESTS: &[Test] = &[
    ("t29_foreign_mark", endpoint::t29_foreign_mark),
    ("t30_mark_set_by_root", endpoint::t30_mark_set_by_root),
    ("t30_mark_on_a_packet_socket", endpoint::t30_mark_on_a_packet_socket),
    ("t31_user_instead_of_mark", endpoint::t31_user_instead_of_mark),
    ("t32_source_port_instead_of_mark", endpoint::t32_source_port_instead_of_mark),
    ("t33_clear_to_the_server", endpoint::t33_clear_to_the_server),
    ("t33_shape_of_a_message", endpoint::t33_shape_of_a_message),
    ("t34_foreign_dnat_of_the_endpoint", endpoint::t34_foreign_dnat_of_the_endpoint),
    ("t35_foreign_dnat_of_loopback", endpoint::t35_foreign_dnat_of_loopback),
    ("t36_foreign_reroute_of_loopback", endpoint::t36_foreign_reroute_of_loopback),
    ("t36_foreign_reroute_of_the_tunnel", endpoint::t36_foreign_reroute_of_the_tunnel),
    ("t36_foreign_duplicate", endpoint::t36_foreign_duplicate),
    ("t37_link_renamed_to_the_tunnel", links::t37_link_renamed_to_the_tunnel),
    ("t38_alternative_name", links::t38_alternative_name),
    ("t39_renamed_link_keeps_its_guard", links::t39_renamed_link_keeps_its_guard),
    ("t40_replugged_link_is_guarded_at_once", links::t40_replugged_link_is_guarded_at_once),
    ("t41_locked_before_there_is_a_link", links::t41_locked_before_there_is_a_link),
    ("t42_wildcard_of_an_old_nft", links::t42_wildcard_of_an_old_nft),
    ("t43_fragmented_outer_packets", links::t43_fragmented_outer_packets),
    ("t44_hostile_link_names", links::t44_hostile_link_names),
    ("t45_rogue_routes_of_a_lease", routes::t45_rogue_routes_of_a_lease),
    ("t45_rogue_routes_of_an_advertisement", routes::t45_rogue_routes_of_an_advertisement),
    ("t46_public_prefix_on_the_link", routes::t46_public_prefix_on_the_link),
    ("t47_private_address_behind_the_gateway", routes::t47_private_address_behind_the_gateway),
    ("t47_wide_lan_stays_near", routes::t47_wide_lan_stays_near),
    ("t48_names_are_not_asked_of_the_lan", routes::t48_names_are_not_asked_of_the_lan),
    ("t49_idioms_alone", routes::t49_idioms_alone),
    ("t50_sockets_that_choose_their_link", routes::t50_sockets_that_choose_their_link),
    ("t66_first_lease_renewal_and_rebinding", leases::t66_first_lease_renewal_and_rebinding),
    ("t66_nothing_but_dhcp", leases::t66_nothing_but_dhcp),
    ("t67_dhcpv6_on_the_link_only", leases::t67_dhcpv6_on_the_link_only),
    ("t67_what_machines_send_by_themselves", leases::t67_what_machines_send_by_themselves),
    (
        "t71_outer_packet_under_the_tunnel_address",
        endpoint::t71_outer_packet_under_the_tunnel_address,
    ),
    ("t72_knock_under_a_foreign_address", foreign::t72_knock_under_a_foreign_address),
    ("t73_refusal_under_a_foreign_address", foreign::t73_refusal_under_a_foreign_address),
    (
        "t73_time_server_asked_under_a_foreign_address",
        foreign::t73_time_server_asked_under_a_foreign_address,
    ),
    ("t74_by_a_bridge_with_the_nic", foreign::t74_by_a_bridge_with_the_nic),
    ("t75_guest_under_a_foreign_address", foreign::t75_guest_under_a_foreign_address),
    ("bridge_host_and_guest_talk", bridges::bridge_host_and_guest_talk),
    ("bridge_needs_its_allowance", bridges::bridge_needs_its_allowance),
    ("bridge_published_port_from_the_host", bridges::bridge_published_port_from_the_host),
    (
        "bridge_published_port_is_closed_to_the_lan",
        bridges::bridge_published_port_is_closed_to_the_lan,
    ),
    ("bridge_guest_gets_a_lease_from_the_host", bridges::bridge_guest_gets_a_lease_from_the_host),
    ("bridge_guest_does_not_reach_the_internet", bridges::bridge_guest_does_not_reach_the_internet),
    ("bridge_guest_with_foreign_rules", bridges::bridge_guest_with_foreign_rules),
    ("bridge_two_internal_bridges_talk", bridges::bridge_two_internal_bridges_talk),
    ("bridge_with_the_nic_leaks_nothing", bridges::bridge_with_the_nic_leaks_nothing),
    ("forward_tunnel_takes_guests", forwarding::forward_tunnel_takes_guests),
    ("forward_tunnel_takes_lan_clients", forwarding::forward_tunnel_takes_lan_clients),
    ("allow_lan", allow::allow_lan),
    ("allow_lan_keeps_loopback", allow::allow_lan_keeps_loopback),
    ("allow_lan_dns", allow::allow_lan_dns),
    ("allow_ntp", allow::allow_ntp),
    ("allow_inbound", allow::allow_inbound),
    ("path_mtu_of_the_outer_flow", errors::path_mtu_of_the_outer_flow),
    ("path_mtu_of_an_older_connection", errors::path_mtu_of_an_older_connection),
];

fn main() -> std::process::ExitCode {
    harness::run(TESTS)
}
