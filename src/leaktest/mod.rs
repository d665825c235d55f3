//! `leaktest`: sends what must not get out, watches every link, and says what did.
//!
//! ```text
//! surroundings -> probe (shots) -> kernel -> capture -> frame, judge (in_force) -> record -> report
//! ```
//!
//! [`frame`], [`judge`], [`canary`] and [`record`] are pure.

pub mod canary;
pub mod capture;
pub mod disrupt;
pub mod frame;
mod guest;
pub mod html;
mod in_force;
pub mod judge;
mod kernel;
pub mod probe;
pub mod record;
pub mod report;
pub mod restore;
pub mod run;
pub mod self_check;
mod shot;
mod surroundings;
