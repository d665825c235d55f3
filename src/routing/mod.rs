//! The routing guard.
