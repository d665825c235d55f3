//! `leaktest`: sends what must not get out, watches every link, and says what did.

pub mod html;
pub mod report;
