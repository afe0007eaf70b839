//! What does the cryptography of TLS, for listeners and for backends. One line to change, see ARCHITECTURE.md.

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, ring};

/// The provider: suites, groups, signatures, randomness.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}
