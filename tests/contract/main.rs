//! The contract: what people type and scripts read, by the real program against the real kernel.

mod boot;
mod completions;
mod failure;
mod machine;
mod output;
mod plan;
mod refusal;
mod secrets;
mod shipped;
mod state;
mod view;

use killswitch::lab::harness;

macro_rules! tests {
    ($($module:ident: $($name:ident)*;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name),)*)*]
    };
}

fn main() -> std::process::ExitCode {
    harness::run(tests! {
        output:
            a_day_in_its_life
            a_tunnel_that_is_up_is_connected
            damage_is_told
            a_guard_of_another_configuration_is_one
            what_is_left_of_the_lock_is_said
            unlock_asks_a_person
            json_has_its_keys
            rules_load_and_explain_agrees
            help_names_every_command
            colour_is_for_terminals_only
            a_closed_pipe_is_no_panic
            what_cannot_be_written_is_a_failure
            the_same_configuration_gives_the_same_bytes;
        refusal:
            a_bad_configuration_leaves_the_lock_alone
            an_open_machine_stays_as_it_was
            who_may_not_is_told_so
            the_owner_of_a_table_is_named;
        failure:
            every_failure_is_a_document
            a_failing_check_says_all_it_found
            what_is_not_permitted_is_a_document
            every_exit_status_is_tested
            a_misspelt_word_gets_a_suggestion
            a_stream_goes_on_where_the_file_is_broken;
        completions:
            bash_completes
            zsh_completes
            fish_completes;
        view:
            it_lives
            the_terminal_is_given_back
            it_stops_and_goes_on
            it_fits_the_terminal
            it_has_colours_unless_told_otherwise;
        boot:
            a_bad_configuration_at_boot_is_the_strictest_lock
            a_bad_configuration_at_boot_tightens_what_is_there
            not_wanted_at_boot_is_not_done
            a_session_is_not_cut_off_unasked
            a_session_shows_in_the_environment_of_a_parent
            a_session_goes_on_though_its_server_speaks_first
            a_session_from_behind_the_gateway_needs_a_service
            a_session_that_never_leaves_is_not_cut_off;
        plan:
            more_loosens_and_less_tightens
            the_exit_status_tells_the_effect
            what_others_did_is_shown
            no_change_is_said_of_none_only;
        state:
            from_whatever_state_lock_leads_to_the_same
            unlock_leaves_nothing_of_ours_and_all_of_others
            nothing_in_the_lock_files_place_holds_up
            commands_at_the_same_time_take_turns;
        secrets:
            no_output_holds_a_key
            a_process_shows_no_key_and_leaves_no_core
            waiting_for_a_turn_has_an_end;
        shipped:
            the_static_lock_is_the_strictest
            nothing_leaves_under_the_static_lock
            the_program_takes_the_static_lock_over_without_a_gap
            no_comment_takes_a_key_into_the_initrd
            the_unit_is_sound
            the_daemons_unit_is_sound
            the_boot_script_falls_back
            the_kernel_settings_do_what_they_are_for;
    })
}
