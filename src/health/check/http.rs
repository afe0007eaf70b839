//! What an http check asks for, and whether the answer is good; over HTTP/1 and over HTTP/2 it is the same.

use bytes::Bytes;
use hyper::{Request, StatusCode, header::USER_AGENT, http::request::Builder};

use super::AGENT;

/// How much of a body is searched for the expected text.
pub(super) const BODY_SEARCHED: usize = 64 * 1024;

/// An http check of one backend.
pub(super) struct Probe<'a> {
    pub path: &'a str,
    pub method: &'a str,
    /// `Host`, or `:authority`.
    pub authority: String,
    /// Good statuses, from and to.
    pub expect: &'a [(u16, u16)],
    /// Must occur in the first [`BODY_SEARCHED`] bytes.
    pub body: Option<&'a str>,
}

impl Probe<'_> {
    /// What is the same for all versions of HTTP.
    pub(super) fn request(&self) -> Builder {
        Request::builder()
            .method(self.method)
            .header(USER_AGENT, AGENT)
    }

    /// `next` gives the body, part by part.
    pub(super) async fn judge(
        &self,
        status: StatusCode,
        next: impl AsyncFnMut() -> Option<Result<Bytes, String>>,
    ) -> Result<(), String> {
        let status = status.as_u16();
        let mut good = self.expect.iter();
        if !good.any(|(low, high)| (*low..=*high).contains(&status)) {
            return Err(format!("status {status}, expected {}", ranges(self.expect)));
        }
        match self.body {
            None => Ok(()),
            Some(text) => contains(text, next).await,
        }
    }
}

/// The cause when there is no valid request of what is configured.
pub(super) fn cannot_ask(error: &hyper::http::Error) -> String {
    format!("cannot ask: {error}")
}

async fn contains(
    text: &str,
    mut next: impl AsyncFnMut() -> Option<Result<Bytes, String>>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    while let Some(data) = next().await {
        let data = data?;
        let room = BODY_SEARCHED - seen.len();
        seen.extend_from_slice(data.get(..room).unwrap_or(&data));
        if memchr::memmem::find(&seen, text.as_bytes()).is_some() {
            return Ok(());
        }
        if seen.len() >= BODY_SEARCHED {
            break;
        }
    }
    Err(format!("body does not contain `{text}`"))
}

fn ranges(expect: &[(u16, u16)]) -> String {
    let words: Vec<_> = expect
        .iter()
        .map(|(low, high)| {
            if low == high {
                low.to_string()
            } else {
                format!("{low}-{high}")
            }
        })
        .collect();
    words.join(", ")
}
