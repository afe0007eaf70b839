//! The request of an http check and the judgement of its response. Both are the same over HTTP/1
//! and HTTP/2.

use super::{
    error::CheckError,
    exchange::{CheckRequest, CheckResponse, CheckStream},
};
use crate::http::message::BodyFraming;

/// Length of the part of a body that is searched for the expected text: a bound on the memory that
/// a check can take.
pub(super) const MAX_SEARCHED_BYTES: usize = 64 * 1024;

/// An http check of one backend.
pub(super) struct HttpProbe<'a> {
    pub path: &'a str,
    pub method: &'a str,
    /// `Host`, or `:authority`.
    pub authority: String,
    /// Inclusive ranges of good statuses.
    pub expect: &'a [(u16, u16)],
    /// Text that must occur in the first [`MAX_SEARCHED_BYTES`] bytes.
    pub body: Option<&'a str>,
}

impl HttpProbe<'_> {
    /// Sends the request on `stream` and judges the response.
    pub(super) async fn run(&self, stream: CheckStream) -> Result<(), CheckError> {
        let request = CheckRequest {
            method: self.method,
            path: self.path,
            authority: &self.authority,
            fields: &[],
            // Methods that expect a body announce that there is none (RFC 9110 section 8.6); some
            // servers answer 411 otherwise.
            framing: match self.method {
                "POST" | "PUT" | "PATCH" => BodyFraming::Length(0),
                _ => BodyFraming::None,
            },
            content: b"",
        };
        let mut response = CheckResponse::fetch(stream, &request).await?;
        let status = response.head.status;
        let mut good = self.expect.iter();
        if !good.any(|(low, high)| (*low..=*high).contains(&status)) {
            let expected = ranges(self.expect);
            return Err(CheckError::unexpected(format!(
                "status {status}, expected {expected}"
            )));
        }
        match self.body {
            None => response.judge_body().await,
            Some(text) => contains(text, &mut response).await,
        }
    }
}

/// Reads the body until `text` occurs in it.
async fn contains(text: &str, response: &mut CheckResponse) -> Result<(), CheckError> {
    let mut seen = Vec::new();
    while let Some(data) = response.next().await {
        let data = data?;
        let left = MAX_SEARCHED_BYTES - seen.len();
        seen.extend_from_slice(data.get(..left).unwrap_or(&data));
        // Searched after every part: a server may keep the connection open behind the text.
        if memchr::memmem::find(&seen, text.as_bytes()).is_some() {
            return Ok(());
        }
        if seen.len() >= MAX_SEARCHED_BYTES {
            break;
        }
    }
    Err(CheckError::unexpected(format!(
        "body does not contain `{text}`"
    )))
}

/// The configured ranges as text.
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
