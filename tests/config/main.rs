//! The configuration as people write it: golden folders, file modes, and arbitrary bytes.
//!
//! Needs to be root, or mapped to root in a user namespace: files of others are refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its files has failed")]

mod files;
mod golden;
mod properties;
