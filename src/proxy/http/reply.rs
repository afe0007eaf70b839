//! The answers balancer gives itself: errors by the 502 rule, redirects and fixed answers of routes.
//!
//! What is written is complete here; `response_headers` of the route that took the request have their say as with a
//! backend's response.

use std::{borrow::Cow, time::Duration};

use super::{
    AfterExchange,
    exchange::{Exchange, Io, write_all},
    forward::{self, is_decided},
    grpc,
};
use crate::{
    config::model::{ErrorFormat, ErrorsConfig, HeaderEdits, RedirectConfig, RespondConfig},
    http1::{
        HttpVersion, encode,
        fields::{KnownField, is_same_or_twin},
        request::{RequestFraming, RequestHead},
    },
    proxy::worker::Worker,
    reason::Reason,
    snapshot::Snapshot,
};

/// An answer of our own, before it is encoded.
#[derive(Debug, Default)]
pub(super) struct LocalReply<'a> {
    /// 200..=599.
    pub status: u16,
    /// Content type and body; none for a redirect.
    pub body: Option<(&'a str, Cow<'a, [u8]>)>,
    /// `Location`.
    pub location: Option<Cow<'a, str>>,
    /// `respond.headers`.
    pub headers: &'a [(String, String)],
    /// Error fields are added for it.
    pub reason: Option<Reason>,
    /// Seconds for `Retry-After`; 0 is none.
    pub retry_after: u64,
    /// The status and the message of a gRPC call, which has no body.
    pub call: Option<(u8, &'static str)>,
}

/// What the encoder must know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyContext<'a> {
    /// The answer to HEAD has no body.
    pub is_head: bool,
    /// Another request may follow.
    pub keep_alive: bool,
    /// Name and value of the request id field.
    pub request_id: (&'a str, &'a str),
    /// Value of `Date`.
    pub date: &'a str,
    /// `response_headers` of the route.
    pub edits: Option<&'a HeaderEdits>,
}

/// The standard phrase of a status, RFC 9110 section 15.
pub(super) fn phrase(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}

/// The status for `reason` by the profile and the overrides of the configuration.
pub(super) fn status_of(reason: Reason, errors: &ErrorsConfig) -> u16 {
    let other = errors.overrides.iter().find(|(from, _)| *from == reason);
    other.map_or_else(|| reason.status(errors.status), |(_, status)| *status)
}

/// The answer for `reason`.
pub(super) fn error<'a>(
    reason: Reason,
    errors: &'a ErrorsConfig,
    head: &RequestHead,
) -> LocalReply<'a> {
    if grpc::is_call(head) {
        return LocalReply {
            status: 200,
            body: Some(("application/grpc", Cow::default())),
            reason: Some(reason),
            call: Some((grpc::status(reason), reason.detail())),
            ..LocalReply::default()
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
    let body = page.map_or_else(
        || Cow::Owned(body(status, reason, html)),
        |page| Cow::Borrowed(&*page.body),
    );
    let kind = if html {
        "text/html; charset=utf-8"
    } else {
        "application/json"
    };
    LocalReply {
        status,
        body: Some((kind, body)),
        reason: Some(reason),
        retry_after: u64::from(reason.retry_after()),
        ..LocalReply::default()
    }
}

fn body(status: u16, reason: Reason, html: bool) -> Vec<u8> {
    let (message, details) = (phrase(status), reason.detail());
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
fn prefers_html(head: &RequestHead) -> bool {
    let mut best = [0_u16; 2];
    for field in head
        .fields
        .iter()
        .filter(|field| field.known == KnownField::Accept)
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
pub(super) fn redirect<'a>(
    redirect: &'a RedirectConfig,
    host: &[u8],
    target: &[u8],
) -> LocalReply<'a> {
    let (location, status) = match redirect {
        RedirectConfig::Https { port, status } => {
            (Cow::Owned(https_location(host, target, *port)), *status)
        }
        RedirectConfig::To { location, status } => (Cow::Borrowed(&**location), *status),
    };
    LocalReply {
        status,
        location: Some(location),
        ..LocalReply::default()
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

/// Fields that describe the body of an error or keep it out of caches: an edit that is meant for the backend's answers
/// does not make an error something else.
fn belongs_to_error(name: &str) -> bool {
    let dashed = name.to_ascii_lowercase().replace('_', "-");
    dashed.ends_with("cache-control")
        || dashed.starts_with("content-") && !dashed.starts_with("content-security-policy")
        || dashed.starts_with("grpc-")
}

impl<'a> LocalReply<'a> {
    /// The fixed answer of a route.
    pub(super) fn fixed(respond: &'a RespondConfig) -> Self {
        Self {
            status: respond.status,
            body: Some((
                &respond.content_type,
                Cow::Borrowed(respond.body.as_bytes()),
            )),
            headers: &respond.headers,
            ..Self::default()
        }
    }

    /// True for an error whose fields of this name are not edited.
    fn keeps(&self, name: &str) -> bool {
        self.reason.is_some() && belongs_to_error(name)
    }

    /// Writes the whole message; gives the length of the body sent.
    pub(super) fn encode(&self, out: &mut Vec<u8>, ending: ReplyContext<'_>) -> u64 {
        encode::status_line(out, self.status, phrase(self.status).as_bytes());
        let edits = ending.edits;
        let is_free = |name: &str| self.keeps(name) || !is_decided(edits, name);
        let is_given = |name: &str| {
            let mut names = self.headers.iter().map(|(given, _)| given.as_bytes());
            names.any(|given| is_same_or_twin(given, name.as_bytes()))
        };
        let field = |out: &mut Vec<u8>, name: &str, value: &[u8]| {
            if is_free(name) && !is_given(name) {
                encode::field(out, name.as_bytes(), value);
            }
        };
        field(out, "Date", ending.date.as_bytes());
        let (kind, body) = self
            .body
            .as_ref()
            .map_or(("", &[][..]), |(kind, body)| (*kind, &**body));
        // RFC 9110 section 8.6: no length with 204, and it would mean another body with 304.
        let bodiless = matches!(self.status, 204 | 304);
        if !bodiless {
            if !kind.is_empty() {
                field(out, "Content-Type", kind.as_bytes());
            }
            encode::content_length(out, body.len() as u64);
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| is_free(name)) {
            encode::field(out, name.as_bytes(), value.as_bytes());
        }
        if let Some((status, message)) = self.call {
            field(out, "grpc-status", status.to_string().as_bytes());
            field(out, "grpc-message", message.as_bytes());
        }
        if let Some(location) = &self.location {
            field(out, "Location", location.as_bytes());
        }
        if let Some(reason) = self.reason {
            field(out, "Cache-Control", b"no-store");
            let status = format!("balancer; error={}", reason.token());
            field(out, "Proxy-Status", status.as_bytes());
            if self.retry_after > 0 {
                field(out, "Retry-After", self.retry_after.to_string().as_bytes());
            }
            if reason == Reason::MethodNotAllowed {
                field(
                    out,
                    "Allow",
                    b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH",
                );
            }
        }
        let (name, id) = ending.request_id;
        if !id.is_empty() {
            field(out, name, id.as_bytes());
        }
        if let Some(edits) = edits {
            for (name, value) in edits.set.iter().chain(&edits.add) {
                if !self.keeps(name) {
                    encode::field(out, name.as_bytes(), value.as_bytes());
                }
            }
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

impl Exchange<'_> {
    /// Answers with a redirect. HTTP/1.0 clients may not say which host they mean: for them there is no https URL.
    pub(super) async fn redirect(&mut self, to: &RedirectConfig, io: &mut Io<'_>) -> AfterExchange {
        let head = &*self.head;
        let host = head.text(head.host);
        if host.is_empty() && matches!(to, RedirectConfig::Https { .. }) {
            return self.fail(Reason::RequestError, io).await;
        }
        let reply = redirect(to, host, head.text(head.target));
        self.reply(&reply, io).await
    }

    /// Answers with an error.
    pub(super) async fn fail(&mut self, reason: Reason, io: &mut Io<'_>) -> AfterExchange {
        self.record.reason = Some(reason);
        let reply = error(reason, &self.context.snapshot.config.errors, self.head);
        self.reply(&reply, io).await
    }

    /// Answers a request over its rate limit; `wait` is the time until one more is allowed.
    pub(super) async fn fail_for(&mut self, wait: Duration, io: &mut Io<'_>) -> AfterExchange {
        let reason = Reason::RateLimited;
        self.record.reason = Some(reason);
        let mut reply = error(reason, &self.context.snapshot.config.errors, self.head);
        reply.retry_after = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.reply(&reply, io).await
    }

    /// Sends an answer of our own.
    pub(super) async fn reply(&mut self, reply: &LocalReply<'_>, io: &mut Io<'_>) -> AfterExchange {
        let unread = self.next_request_at.is_none()
            && self.record.attempts == 0
            && self.head.framing != RequestFraming::None;
        let keep_alive = self.head.keep_alive && !unread && !self.must_close();
        io.out.clear();
        let config = &self.context.snapshot.config;
        let route = self.record.route.and_then(|route| config.routes.get(route));
        let ending = ReplyContext {
            is_head: self.head.text(self.head.method) == b"HEAD",
            keep_alive,
            request_id: (&config.forwarded.request_id, self.request_id),
            date: "",
            edits: route.map(|route| &route.response_headers),
        };
        self.record.bytes_out = self
            .context
            .worker
            .with_date(|date| reply.encode(io.out, ReplyContext { date, ..ending }));
        self.record.status = reply.status;
        let timeouts = &self.context.listener.config.timeouts;
        let written = write_all(self.client, io.out, timeouts).await;
        self.context.counters().sent.add(io.out.len() as u64);
        match written {
            Err(reason) => {
                self.record.reason.get_or_insert(reason);
                AfterExchange::Reset
            }
            Ok(()) if keep_alive => AfterExchange::KeepAlive,
            Ok(()) if self.client_asked_to_close && !unread => AfterExchange::Close,
            Ok(()) => AfterExchange::Linger,
        }
    }
}

/// The whole answer to a connection that is not served.
pub(super) fn encode_refusal(
    worker: &Worker,
    snapshot: &Snapshot,
    reason: Reason,
    out: &mut Vec<u8>,
) {
    let head = RequestHead {
        version: HttpVersion::Http11,
        ..RequestHead::default()
    };
    let reply = error(reason, &snapshot.config.errors, &head);
    let mut request_id = String::new();
    forward::new_request_id(&mut request_id, &mut worker.random.borrow_mut());
    worker.with_date(|date| {
        reply.encode(
            out,
            ReplyContext {
                is_head: false,
                keep_alive: false,
                request_id: (&snapshot.config.forwarded.request_id, &request_id),
                date,
                edits: None,
            },
        )
    });
    snapshot.unrouted.mine().error(reason, reply.status);
}
