//! Applies and reads back the whole lock.
