//! The configuration as people write it: golden folders, file modes, and arbitrary bytes.
//!
//! Needs to be root, or mapped to root in a user namespace: files of others are refused.

mod files;
mod golden;
mod properties;
