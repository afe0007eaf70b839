//! The answers balancer gives itself: errors by the 502 rule, redirects and fixed answers of routes.

use super::grpc;
use crate::{
    config::model::{ErrorFormat, Errors, Redirect},
    http1::{encode, fields::Known, request::Head},
    reason::Reason,
};

/// An answer of our own, before it is encoded.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// 200..=599.
    pub status: u16,
    /// Content type and body; none for a redirect.
    pub body: Option<(&'static str, Vec<u8>)>,
    /// `Location`.
    pub location: Option<String>,
    /// Error fields are added for it.
    pub reason: Option<Reason>,
    /// Seconds for `Retry-After`; 0 is none.
    pub retry_after: u64,
    /// The status and the message of a gRPC call, which has no body.
    pub call: Option<(u8, &'static str)>,
}

/// What the encoder must know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending<'a> {
    /// The answer to HEAD has no body.
    pub is_head: bool,
    /// Another request may follow.
    pub keep_alive: bool,
    /// Name and value of the request id field.
    pub request_id: (&'a str, &'a str),
    /// Value of `Date`.
    pub date: &'a str,
}

/// The standard phrase of a status, RFC 9110 section 15.
pub(super) fn phrase(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}

/// The status for `reason` by the profile and the overrides of the configuration.
pub(super) fn status_of(reason: Reason, errors: &Errors) -> u16 {
    let other = errors.overrides.iter().find(|(from, _)| *from == reason);
    other.map_or_else(|| reason.status(errors.status), |(_, status)| *status)
}

/// The answer for `reason`.
pub(super) fn error(reason: Reason, errors: &Errors, head: &Head) -> Reply {
    if grpc::is_call(head) {
        return Reply {
            status: 200,
            body: Some(("application/grpc", Vec::new())),
            reason: Some(reason),
            call: Some((grpc::status(reason), reason.sentence())),
            ..Reply::default()
        };
    }
    let status = status_of(reason, errors);
    let html = match errors.format {
        ErrorFormat::Json => false,
        ErrorFormat::Html => true,
        ErrorFormat::Auto => prefers_html(head),
    };
    let page = errors
        .pages
        .iter()
        .find(|page| page.status == status && page.html == html);
    let body = page.map_or_else(|| body(status, reason, html), |page| page.body.clone());
    let kind = if html {
        "text/html; charset=utf-8"
    } else {
        "application/json"
    };
    Reply {
        status,
        body: Some((kind, body)),
        reason: Some(reason),
        retry_after: u64::from(reason.retry_after()),
        ..Reply::default()
    }
}

fn body(status: u16, reason: Reason, html: bool) -> Vec<u8> {
    let (message, details) = (phrase(status), reason.sentence());
    let text = if html {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {message}</title></head>\n\
             <body><h1>{status} {message}</h1><p>{details}</p></body></html>\n"
        )
    } else {
        format!(
            "{{\"error\":{{\"code\":{status},\"message\":\"{message}\",\"details\":\"{details}\"}}}}"
        )
    };
    text.into_bytes()
}

/// `Accept` weighs HTML higher than JSON, RFC 9110 section 12.5.1; without `Accept` it does not.
fn prefers_html(head: &Head) -> bool {
    let mut best = [0_u16; 2];
    for field in head
        .fields
        .iter()
        .filter(|field| field.known == Known::Accept)
    {
        for range in crate::http1::list(head.text(field.value)) {
            let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let name = parts.next().unwrap_or_default();
            let weight = parts
                .find_map(|part| part.strip_prefix(b"q="))
                .map_or(1000, thousandths);
            let html = name.eq_ignore_ascii_case(b"text/html")
                || name.eq_ignore_ascii_case(b"application/xhtml+xml");
            let json = name.eq_ignore_ascii_case(b"application/json");
            let [for_html, for_json] = &mut best;
            *for_html = (*for_html).max(if html { weight } else { 0 });
            *for_json = (*for_json).max(if json { weight } else { 0 });
        }
    }
    best[0] > best[1]
}

/// A weight of 0 to 1 with up to three decimals.
fn thousandths(weight: &[u8]) -> u16 {
    let text = std::str::from_utf8(weight).unwrap_or_default();
    let weight = text.parse::<f32>().unwrap_or_default();
    (weight.clamp(0.0, 1.0) * 1000.0) as u16
}

/// The answer for a redirect of `host` and `target`.
pub(super) fn redirect(redirect: &Redirect, host: &[u8], target: &[u8]) -> Reply {
    let (location, status) = match redirect {
        Redirect::Https { port, status } => (https_location(host, target, *port), *status),
        Redirect::To { location, status } => (location.clone(), *status),
    };
    Reply {
        status,
        location: Some(location),
        ..Reply::default()
    }
}

/// Host and target have been checked when the request was read: no byte of theirs can end the field.
fn https_location(host: &[u8], target: &[u8], port: u16) -> String {
    let host = String::from_utf8_lossy(host);
    let target = String::from_utf8_lossy(if target == b"*" { b"/" } else { target });
    let end = if host.starts_with('[') {
        host.find(']').map_or(host.len(), |at| at + 1)
    } else {
        host.find(':').unwrap_or(host.len())
    };
    let name = host.get(..end).unwrap_or_default();
    if port == 443 {
        format!("https://{name}{target}")
    } else {
        format!("https://{name}:{port}{target}")
    }
}

impl Reply {
    /// A fixed answer.
    pub(super) fn fixed(status: u16, body: &str) -> Self {
        Self {
            status,
            body: Some(("text/plain; charset=utf-8", body.as_bytes().to_vec())),
            ..Self::default()
        }
    }

    /// Writes the whole message; gives the length of the body sent.
    pub(super) fn encode(&self, out: &mut Vec<u8>, ending: Ending<'_>) -> u64 {
        encode::status_line(out, self.status, phrase(self.status).as_bytes());
        encode::field(out, b"Date", ending.date.as_bytes());
        let (kind, body) = self
            .body
            .as_ref()
            .map_or(("", &[][..]), |(kind, body)| (*kind, body.as_slice()));
        // RFC 9110 section 8.6: no length with 204, and it would mean another body with 304.
        let bodiless = matches!(self.status, 204 | 304);
        if !bodiless {
            if !kind.is_empty() {
                encode::field(out, b"Content-Type", kind.as_bytes());
            }
            encode::content_length(out, body.len() as u64);
        }
        if let Some((status, message)) = self.call {
            encode::field(out, b"grpc-status", status.to_string().as_bytes());
            encode::field(out, b"grpc-message", message.as_bytes());
        }
        if let Some(location) = &self.location {
            encode::field(out, b"Location", location.as_bytes());
        }
        if let Some(reason) = self.reason {
            encode::field(out, b"Cache-Control", b"no-store");
            let status = format!("balancer; error={}", reason.token());
            encode::field(out, b"Proxy-Status", status.as_bytes());
            if self.retry_after > 0 {
                encode::field(out, b"Retry-After", self.retry_after.to_string().as_bytes());
            }
            if reason == Reason::MethodNotAllowed {
                encode::field(
                    out,
                    b"Allow",
                    b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH",
                );
            }
        }
        let (name, id) = ending.request_id;
        if !id.is_empty() {
            encode::field(out, name.as_bytes(), id.as_bytes());
        }
        let connection: &[u8] = if ending.keep_alive {
            b"keep-alive"
        } else {
            b"close"
        };
        encode::field(out, b"Connection", connection);
        encode::end(out);
        if ending.is_head || bodiless {
            return 0;
        }
        out.extend_from_slice(body);
        body.len() as u64
    }
}
