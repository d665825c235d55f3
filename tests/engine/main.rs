//! The daemon's decisions, in a world that is simulated: no kernel, no clock.

mod faults;
mod properties;
mod table;
mod times;
mod world;
