//! Sticky sessions: the id of each backend in the cookie of its clients, and back from an id to the
//! backend. Pure.
//!
//! An id is a keyed hash of the pool's name and the backend's address. So it needs no table that
//! has to be kept or shared: it is the same after a restart, and on every machine with the secret.
//! Clients learn nothing from it, and cannot make one. All ids and fields are worked out with the
//! generation, so that a request only looks one up.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use ring::hmac;

use super::backend::Backend;
use crate::config::model::{SecureCookie, StickyConfig, StickySecret};

/// Bytes of the hash that an id has: 96 bits cannot be guessed, and among 10,000 backends two have
/// the same with a probability of 10^-21.
const ID_BYTES: usize = 12;

/// An id as text: hexadecimal digits.
type IdText = [u8; 2 * ID_BYTES];

/// The ids of one generation of a pool.
#[derive(Debug)]
pub struct StickyTable {
    /// Name of the cookie.
    pub cookie: String,
    secure: SecureCookie,
    by_id: HashMap<IdText, usize>,
    /// By position in the pool.
    fields: Box<[CookieField]>,
}

/// A value of `Set-Cookie`.
#[derive(Debug)]
struct CookieField {
    /// With `Secure` at its end.
    text: Box<str>,
    /// Range of the id in `text`.
    id: std::ops::Range<usize>,
}

/// The last attribute of a secure cookie.
const SECURE_ATTRIBUTE: &str = "; Secure";

impl StickyTable {
    /// Makes the table of the pool called `pool`.
    pub(super) fn new(
        pool: &str,
        config: &StickyConfig,
        secret: &StickySecret,
        backends: &[Arc<Backend>],
    ) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
        let attributes = attributes(config);
        let mut by_id = HashMap::with_capacity(backends.len());
        let fields = backends.iter().map(|backend| {
            let id = id_of(&key, pool, &backend.config.address.to_string());
            by_id.insert(id, backend.index);
            let start = config.cookie.len() + 1;
            let id_text = String::from_utf8_lossy(&id);
            CookieField {
                text: format!("{}={id_text}{attributes}{SECURE_ATTRIBUTE}", config.cookie).into(),
                id: start..start + id.len(),
            }
        });
        Self {
            cookie: config.cookie.clone(),
            secure: config.secure,
            fields: fields.collect(),
            by_id,
        }
    }

    /// Position of the first backend that one of `values` names. Values of strangers, old and
    /// invented ones name none.
    pub fn find<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
        values.find_map(|value| {
            let id = IdText::try_from(value).ok()?;
            self.by_id.get(&id).copied()
        })
    }

    /// Value of `Set-Cookie` for the backend at `position`.
    pub fn field(&self, position: usize, client_uses_tls: bool) -> Option<&str> {
        let text = &self.fields.get(position)?.text;
        let is_secure = match self.secure {
            SecureCookie::Auto => client_uses_tls,
            SecureCookie::Always => true,
            SecureCookie::Never => false,
        };
        if is_secure {
            Some(text)
        } else {
            text.strip_suffix(SECURE_ATTRIBUTE)
        }
    }

    /// Id of the backend at `position`, the value of its cookie.
    pub fn id(&self, position: usize) -> Option<&str> {
        let field = self.fields.get(position)?;
        field.text.get(field.id.clone())
    }
}

/// Attributes of the cookie but for `Secure`, RFC 6265 section 4.1.
fn attributes(config: &StickyConfig) -> String {
    let mut text = format!("; Path={}", config.path);
    if let Some(ttl) = config.ttl {
        _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if config.http_only {
        text.push_str("; HttpOnly");
    }
    _ = write!(text, "; SameSite={}", config.same_site.attribute());
    text
}

/// The id of the backend at `address` in the pool called `pool`. A pool's name has no zero byte, so
/// no two pairs are one text.
fn id_of(key: &hmac::Key, pool: &str, address: &str) -> IdText {
    let mut context = hmac::Context::with_key(key);
    for part in ["balancer sticky 1", pool, address] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    let tag = context.sign();
    let mut id = [b'0'; 2 * ID_BYTES];
    for (digits, byte) in id.chunks_exact_mut(2).zip(tag.as_ref()) {
        for (digit, half) in digits.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = char::from_digit(half.into(), 16).map_or(b'0', |digit| digit as u8);
        }
    }
    id
}
