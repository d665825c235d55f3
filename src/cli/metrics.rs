//! `metrics`: numbers for Prometheus.

use serde::Serialize;

use super::args::{self, Arguments};
use super::new_file::NewFile;
use super::status::{self, CANNOT_TELL};
use super::{Failure, output};
use crate::evidence::{Places, journal};
use crate::metrics::{Besides, Family, families, text};

#[derive(Serialize)]
struct Document<'a> {
    metrics: &'a [Family],
}

pub(super) fn metrics(arguments: &Arguments, options: &args::Metrics) -> Result<u8, Failure> {
    let status = status::read(arguments);
    let report = status::ask_daemon(status::PATIENCE).ok().flatten();
    let besides = Besides {
        repairs: report.map(|report| report.repairs),
        evidence_seq: journal::noted_head(&Places::default()).map(|head| head.seq),
    };
    let families = families(status.as_ref().ok(), besides);
    match &options.output {
        // Also where nothing can be told: an old file would go on saying "locked".
        Some(path) => NewFile::open(path, 0o644)?.put(text(&families).as_bytes())?,
        None if status.is_err() => {}
        None if arguments.json => output::json(&Document { metrics: &families }),
        None => output::say(text(&families).trim_end()),
    }
    status.map(|_| 0).map_err(|failure| Failure { code: CANNOT_TELL, ..failure })
}
