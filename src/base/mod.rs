//! Small tools that know nothing of balancer: time, randomness, addresses, units, backoff, rates.

pub mod address;
pub mod backoff;
pub mod certificate;
pub mod clock;
pub mod crypto;
#[cfg(test)]
pub(crate) mod fixture;
pub mod hasher;
pub mod log_limit;
pub mod paths;
pub mod percent;
pub mod rate;
pub mod rng;
pub mod short_text;
pub mod socket_key;
pub mod state_file;
pub mod units;
pub mod wake_signal;
