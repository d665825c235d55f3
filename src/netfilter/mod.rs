//! The nftables edge.
