//! Legal but unwise.
