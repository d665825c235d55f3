//! Messages: with their fields to the journal where there is one, as lines to standard error
//! otherwise.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub(super) fn open() {
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    // systemd.exec(5): set where standard error goes to the journal.
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let opened = match journal {
        Some(journal) => {
            registry.with(journal.with_field_prefix(Some("KILLSWITCH".into()))).try_init()
        }
        None => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .with_target(false);
            match std::io::stderr().is_terminal() {
                true => registry.with(lines.without_time()).try_init(),
                false => registry.with(lines).try_init(),
            }
        }
    };
    // Only if there is one already: then that one speaks.
    let _ = opened;
}
