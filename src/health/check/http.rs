//! The request of an http check and the judgement of its response. Both are the same over HTTP/1
//! and HTTP/2.

use super::{
    conversation::shown,
    error::CheckError,
    exchange::{CheckRequest, CheckResponse, CheckStream, USER_AGENT},
    phases::PhaseClock,
    steps::end_of_match,
};
use crate::{
    config::model::{ExpectedHeader, ExpectedText, HttpCheckConfig},
    http::message::BodyFraming,
};

/// Length of the part of a body that is searched for the expected text: a bound on the memory that
/// a check can take.
pub(super) const MAX_SEARCHED_BYTES: usize = 64 * 1024;

/// An http check of one backend.
pub(super) struct HttpProbe<'a> {
    pub check: &'a HttpCheckConfig,
    /// `Host`, or `:authority`.
    pub authority: String,
    pub phases: &'a PhaseClock,
}

impl HttpProbe<'_> {
    /// Sends the request on `stream` and judges the response.
    pub(super) async fn run(&self, stream: CheckStream) -> Result<(), CheckError> {
        let HttpCheckConfig { path, method, .. } = self.check;
        let own = self.check.headers.iter();
        let mut fields: Vec<(&str, &str)> = own
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if !fields.iter().any(|(name, _)| *name == "user-agent") {
            fields.push(("user-agent", USER_AGENT));
        }
        let request = CheckRequest {
            method,
            path,
            authority: &self.authority,
            fields: &fields,
            // Methods that expect a body announce that there is none (RFC 9110 section 8.6); some
            // servers answer 411 otherwise.
            framing: match method.as_str() {
                "POST" | "PUT" | "PATCH" => BodyFraming::Length(0),
                _ => BodyFraming::None,
            },
            content: b"",
            phases: self.phases,
        };
        let mut response = CheckResponse::fetch(stream, &request).await?;
        self.judge_head(&response)?;
        match &self.check.body {
            None => response.judge_body().await,
            Some(text) => contains(text, &mut response).await,
        }
    }

    fn judge_head(&self, response: &CheckResponse) -> Result<(), CheckError> {
        let status = response.head.status;
        let mut good = self.check.expect.iter();
        if !good.any(|(low, high)| (*low..=*high).contains(&status)) {
            let expected = ranges(&self.check.expect);
            return Err(CheckError::unexpected(format!(
                "status {status}, expected {expected}"
            )));
        }
        let expected = self.check.expect_headers.iter();
        for (name, value) in expected {
            let values = response.head.fields.sent_values(name, &response.head.bytes);
            judge_header(name, value, values).map_err(CheckError::unexpected)?;
        }
        Ok(())
    }
}

/// Judges the `values` of the header `name`; the error is the cause.
fn judge_header<'v>(
    name: &str,
    expected: &ExpectedHeader,
    mut values: impl Iterator<Item = &'v [u8]>,
) -> Result<(), String> {
    let first = values.next();
    let found = || match first {
        Some(value) => format!("`{}`", shown(value)),
        None => "none".to_owned(),
    };
    let mut all = first.into_iter().chain(values);
    match expected {
        ExpectedHeader::Equal(text) if all.any(|value| value == text.as_bytes()) => Ok(()),
        ExpectedHeader::Regex(pattern) if all.any(|value| pattern.regex.is_match(value)) => Ok(()),
        ExpectedHeader::Present(wanted) if *wanted == first.is_some() => Ok(()),
        ExpectedHeader::Equal(text) => {
            let text = shown(text.as_bytes());
            Err(format!(
                "header {name}: expected `{text}`, found {}",
                found()
            ))
        }
        ExpectedHeader::Regex(pattern) => {
            let text = &pattern.text;
            let found = found();
            Err(format!(
                "header {name}: expected a match of `{text}`, found {found}"
            ))
        }
        ExpectedHeader::Present(true) => Err(format!("header {name}: expected one, found none")),
        ExpectedHeader::Present(false) => {
            Err(format!("header {name}: expected none, found {}", found()))
        }
    }
}

/// Reads the body until `text` occurs in it.
async fn contains(text: &ExpectedText, response: &mut CheckResponse) -> Result<(), CheckError> {
    let mut seen = Vec::new();
    while let Some(data) = response.next().await {
        let data = data?;
        let left = MAX_SEARCHED_BYTES - seen.len();
        seen.extend_from_slice(data.get(..left).unwrap_or(&data));
        // Searched after every part: a server may keep the connection open behind the text.
        if end_of_match(text, &seen).is_some() {
            return Ok(());
        }
        if seen.len() >= MAX_SEARCHED_BYTES {
            break;
        }
    }
    // An expression may match nothing at all.
    if end_of_match(text, &seen).is_some() {
        return Ok(());
    }
    let cause = match text {
        ExpectedText::Bytes(text) => {
            format!("body does not contain `{}`", String::from_utf8_lossy(text))
        }
        ExpectedText::Regex(pattern) => format!("body does not match `{}`", pattern.text),
    };
    Err(CheckError::unexpected(cause))
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
