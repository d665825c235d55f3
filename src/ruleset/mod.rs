//! The ruleset, pure.
