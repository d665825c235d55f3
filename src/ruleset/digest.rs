//! A ruleset in one line.

use sha2::{Digest, Sha256};

use super::{Ruleset, text};

/// SHA-256, in hexadecimal, of what `killswitch rules` prints of it, the line's end included.
pub fn sha256(ruleset: &Ruleset) -> String {
    let hash = Sha256::digest(format!("{}\n", print(ruleset)));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `killswitch rules` prints, without the line's end.
pub fn print(ruleset: &Ruleset) -> String {
    let scripts: Vec<String> = ruleset.tables().map(text::script).collect();
    scripts.join("\n").trim_end().to_owned()
}
