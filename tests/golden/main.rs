//! Our text through `nft -f` and our messages give the kernel the same tables; what the kernel
//! holds is read back as it was compiled, and every tampering with it is seen and repaired.

mod configurations;
mod listing;
mod tampering;

use killswitch::lab::harness;

fn main() -> std::process::ExitCode {
    harness::run(&[
        ("text_is_as_pinned", configurations::text_is_as_pinned),
        ("text_and_messages_give_one_table", configurations::text_and_messages_give_one_table),
        ("text_and_messages_give_one_guard", configurations::text_and_messages_give_one_guard),
        ("random_policies_read_back", tampering::random_policies_read_back),
        ("large_sets_read_back", tampering::large_sets_read_back),
        ("every_tampering_is_seen_and_repaired", tampering::every_tampering_is_seen_and_repaired),
    ])
}

#[path = "../judges/policies.rs"]
mod policies;

/// As the generator of policies wants it.
mod packet {
    pub fn address(text: &str) -> std::net::IpAddr {
        text.parse().expect("an address")
    }
}
