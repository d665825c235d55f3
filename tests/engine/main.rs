//! The daemon's decisions, in a world that is simulated: no kernel, no clock.

#[path = "../judges/dice.rs"]
#[allow(dead_code, reason = "the judges use more of it")]
mod dice;
mod faults;
mod properties;
mod table;
mod times;
mod world;
