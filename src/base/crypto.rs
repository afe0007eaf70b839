//! The cryptography provider of TLS, for listeners and backends. One line to change;
//! ARCHITECTURE.md has the reasons for the choice.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};

/// Returns the provider of suites, groups, signatures and randomness.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}
