//! `pools.NAME.sticky`.

use std::{fmt, sync::Arc, time::Duration};

/// `pools.NAME.sticky`: a cookie keeps each client on one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyConfig {
    /// Name of the cookie.
    pub cookie: String,
    /// Lifetime of the cookie in whole seconds; `None`: it ends when the client does. Default none.
    pub ttl: Option<Duration>,
    /// Default auto.
    pub secure: SecureCookie,
    /// Default lax.
    pub same_site: SameSite,
    /// Scripts cannot read the cookie. Default true.
    pub http_only: bool,
    /// Paths for which clients send the cookie. Default `/`.
    pub path: String,
    /// Content of `secret_file`. Without one it is `None` as read; the daemon sets its own secret
    /// before it uses the configuration.
    pub secret: Option<StickySecret>,
}

/// `pools.NAME.sticky.secure`: clients send the cookie over TLS only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecureCookie {
    /// If the client used TLS when it got the cookie.
    #[default]
    Auto,
    /// `true`.
    Always,
    /// `false`.
    Never,
}

/// `pools.NAME.sticky.same_site`: `SameSite` of the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameSite {
    /// Not sent with what other sites embed, but with links from them.
    #[default]
    Lax,
    /// Never sent with requests that other sites cause.
    Strict,
    /// Sent with all requests.
    None,
}

impl SameSite {
    /// Its word in `Set-Cookie`.
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::Lax => "Lax",
            Self::Strict => "Strict",
            Self::None => "None",
        }
    }
}

/// Secret from which the ids of backends are made. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct StickySecret(Arc<[u8]>);

impl StickySecret {
    /// Least length of a secret in bytes.
    pub const MIN_BYTES: usize = 16;

    /// Takes the content of a file, without the blanks around it; `None` if it is too short.
    pub fn of_file(content: &[u8]) -> Option<Self> {
        let secret = content.trim_ascii();
        (secret.len() >= Self::MIN_BYTES).then(|| Self(secret.into()))
    }

    /// The bytes of the secret.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for StickySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StickySecret")
    }
}
