//! Threats 29 to 50, 66 and 67, the bridges of containers and guests, and what the configuration
//! allows: each is first seen on the wire without the lock, or without the layer in question.

#[path = "../common/mod.rs"]
mod common;
mod endpoint;
mod links;
mod routes;
mod shot;

use killswitch::lab::harness::{self, Test};

const TESTS: &[Test] = &[
    ("t29_foreign_mark", endpoint::t29_foreign_mark),
    ("t30_mark_set_by_root", endpoint::t30_mark_set_by_root),
    ("t31_user_instead_of_mark", endpoint::t31_user_instead_of_mark),
    ("t32_source_port_instead_of_mark", endpoint::t32_source_port_instead_of_mark),
    ("t33_clear_to_the_server", endpoint::t33_clear_to_the_server),
    ("t33_shape_of_a_message", endpoint::t33_shape_of_a_message),
    ("t34_foreign_dnat_of_the_endpoint", endpoint::t34_foreign_dnat_of_the_endpoint),
    ("t35_foreign_dnat_of_loopback", endpoint::t35_foreign_dnat_of_loopback),
    ("t36_foreign_reroute_of_loopback", endpoint::t36_foreign_reroute_of_loopback),
    ("t37_link_renamed_to_the_tunnel", links::t37_link_renamed_to_the_tunnel),
    ("t38_alternative_name", links::t38_alternative_name),
    ("t39_renamed_link_keeps_its_guard", links::t39_renamed_link_keeps_its_guard),
    ("t40_replugged_link_is_guarded_at_once", links::t40_replugged_link_is_guarded_at_once),
    ("t41_locked_before_there_is_a_link", links::t41_locked_before_there_is_a_link),
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
];

fn main() -> std::process::ExitCode {
    harness::run(TESTS)
}
