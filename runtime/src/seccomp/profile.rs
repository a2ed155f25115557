//! The filters of a box.
