//! The configuration: file → tree → checked model. Pure but for reading files.

pub mod model;
