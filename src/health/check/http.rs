//! What an http check asks for, and whether the answer is good; over HTTP/1 and over HTTP/2 it is the same.

use super::{CheckError, USER_AGENT, http1::CheckResponse};
use crate::net::stream::Stream;

/// How much of a body is searched for the expected text.
pub(super) const BODY_SEARCHED: usize = 64 * 1024;

/// An http check of one backend.
pub(super) struct HttpProbe<'a> {
    pub path: &'a str,
    pub method: &'a str,
    /// `Host`, or `:authority`.
    pub authority: String,
    /// Good statuses, from and to.
    pub expect: &'a [(u16, u16)],
    /// Must occur in the first [`BODY_SEARCHED`] bytes.
    pub body: Option<&'a str>,
}

impl HttpProbe<'_> {
    /// Makes the check on `stream`.
    pub(super) async fn run(&self, stream: Stream) -> Result<(), CheckError> {
        let request = self.request();
        let mut response = CheckResponse::ask(stream, self.method, request.as_bytes()).await?;
        let status = response.head.status;
        let mut good = self.expect.iter();
        if !good.any(|(low, high)| (*low..=*high).contains(&status)) {
            let expected = ranges(self.expect);
            return Err(format!("status {status}, expected {expected}").into());
        }
        match self.body {
            None => response.judge_body().await,
            Some(text) => contains(text, &mut response).await,
        }
    }

    fn request(&self) -> String {
        let Self {
            path,
            method,
            authority,
            ..
        } = self;
        // A method that has a body as a rule says that it has none, RFC 9110 section 8.6.
        let length = match *method {
            "POST" | "PUT" | "PATCH" => "content-length: 0\r\n",
            _ => "",
        };
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: {USER_AGENT}\r\n{length}connection: close\r\n\r\n"
        )
    }
}

async fn contains(text: &str, response: &mut CheckResponse) -> Result<(), CheckError> {
    let mut seen = Vec::new();
    while let Some(data) = response.next().await {
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
    Err(format!("body does not contain `{text}`").into())
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
