//! A benchmark is parts, each of them asked for by name, and a table of what they measured.

use std::process::ExitCode;

use killswitch::lab::Result;

/// One line of the table.
pub trait Row {
    fn print(&self);
    /// Within its bound.
    fn holds(&self) -> bool;
}

/// Measures something.
pub type Part<Bench, Row> = fn(&Bench) -> Result<Vec<Row>>;

/// The words of the command line: cargo adds options of its own.
pub fn asked() -> Vec<String> {
    std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect()
}

/// Prints what was asked for, or all: whether it holds.
pub fn measure<Bench, R: Row>(
    bench: &Bench,
    asked: &[String],
    parts: &[(&str, Part<Bench, R>)],
) -> Result<bool> {
    let mut all = true;
    for (name, part) in parts {
        if !asked.is_empty() && !asked.iter().any(|it| it == name) {
            continue;
        }
        for row in part(bench)? {
            row.print();
            all &= row.holds();
        }
    }
    Ok(all)
}

/// 0: all holds.
pub fn exit_code(outcome: &Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
