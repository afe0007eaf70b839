//! The data plane: what happens to a connection once it is accepted. Floor 5.

pub mod tcp;
