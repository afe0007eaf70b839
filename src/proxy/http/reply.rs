//! Responses of balancer's own: errors, redirects and fixed responses of routes.
//!
//! Complete messages with their bodies. `response_headers` of the route edit them like the response
//! of a backend, except for the fields that make an error one.

use std::{borrow::Cow, time::Duration};

use super::{
    buffers::ExchangeBuffers,
    client_side::ClientSide,
    exchange::Exchange,
    forward, grpc,
    header_edits::is_decided,
    outcome::{AfterExchange, after_response},
    relay::BodyRelay,
};
use crate::{
    config::model::{ErrorFormat, ErrorsConfig, HeaderEdits, RedirectConfig, RespondConfig},
    http::{
        fields::{KnownField, is_same_or_twin, list},
        head_writer::HeadWriter,
        message::{BodyFraming, HttpVersion, RequestHead},
    },
    http1::encode::TextHead,
    http2::block_head::BlockHead,
    proxy::worker::Worker,
    reason::Reason,
    snapshot::Snapshot,
};

/// A response of our own, before it is encoded.
#[derive(Debug, Default)]
pub(super) struct LocalReply<'a> {
    /// Status, 200..=599.
    pub status: u16,
    /// Content type and body; none for a redirect.
    pub body: Option<(&'a str, Cow<'a, [u8]>)>,
    /// `Location`.
    pub location: Option<Cow<'a, str>>,
    /// `respond.headers`.
    pub headers: &'a [(String, String)],
    /// Reason of an error, for which error fields are added.
    pub reason: Option<Reason>,
    /// Seconds for `Retry-After`; 0 leaves it out.
    pub retry_after: u64,
    /// `grpc-status` and `grpc-message` of a gRPC call, which has no body.
    pub call: Option<(u8, &'static str)>,
}

/// Facts about the request that the encoder needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyContext<'a> {
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

/// The response for `reason`.
pub(super) fn error<'a>(
    reason: Reason,
    errors: &'a ErrorsConfig,
    head: &RequestHead,
) -> LocalReply<'a> {
    // A gRPC client takes any other status than 200 for a fault of the transport.
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

/// The default body of an error. Its texts are constants: nothing of the request is reflected.
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

/// True if `Accept` prefers HTML to JSON (RFC 9110 section 12.5.1); false without `Accept`.
fn prefers_html(head: &RequestHead) -> bool {
    let mut best = [0_u16; 2];
    for field in head
        .fields
        .iter()
        .filter(|field| field.known == KnownField::Accept)
    {
        for range in list(head.text(field.value)) {
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

/// The response for a redirect of `host` and `target`.
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

/// The https URL of a request. Host and target were checked when the request was read: none of
/// their bytes can end the field.
fn https_location(host: &[u8], target: &[u8], port: u16) -> String {
    let host = String::from_utf8_lossy(host);
    // `OPTIONS *` has no URL of its own.
    let target = String::from_utf8_lossy(if target == b"*" { b"/" } else { target });
    // Without the port, which is that of the listener in the clear.
    let end = if host.starts_with('[') {
        host.find(']').map_or(host.len(), |at| at + 1)
    } else {
        host.find(':').unwrap_or(host.len())
    };
    debug_assert!(host.is_char_boundary(end), "an index of the same text");
    let name = host.get(..end).unwrap_or_default();
    if port == 443 {
        format!("https://{name}{target}")
    } else {
        format!("https://{name}:{port}{target}")
    }
}

/// True for fields that describe the body of an error or keep it out of caches. An edit that is
/// meant for responses of the backend must not make an error something else.
fn belongs_to_error(name: &str) -> bool {
    let dashed = name.to_ascii_lowercase().replace('_', "-");
    dashed.ends_with("cache-control")
        || dashed.starts_with("content-") && !dashed.starts_with("content-security-policy")
        || dashed.starts_with("grpc-")
}

impl<'a> LocalReply<'a> {
    /// The fixed response of a route.
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

    /// True for an error whose field `name` is not edited.
    fn keeps(&self, name: &str) -> bool {
        self.reason.is_some() && belongs_to_error(name)
    }

    /// True if `edits` do not decide about the field `name`.
    fn is_free(&self, name: &str, edits: Option<&HeaderEdits>) -> bool {
        self.keeps(name) || !is_decided(edits, name)
    }

    /// Writes a field, unless the route edits it or `respond.headers` has one of this name.
    fn field(
        &self,
        out: &mut impl HeadWriter,
        edits: Option<&HeaderEdits>,
        name: &str,
        value: &[u8],
    ) {
        let mut given = self.headers.iter().map(|(given, _)| given.as_bytes());
        let is_given = given.any(|given| is_same_or_twin(given, name.as_bytes()));
        if !is_given && self.is_free(name, edits) {
            out.field(name.as_bytes(), value);
        }
    }

    /// True for a status without content. RFC 9110 section 8.6: no length with 204, and it would
    /// mean another body with 304.
    const fn is_bodiless(&self) -> bool {
        matches!(self.status, 204 | 304)
    }

    /// Content behind the head; none in the response to HEAD.
    pub(super) fn content(&self, is_head: bool) -> &[u8] {
        match &self.body {
            Some((_, body)) if !is_head && !self.is_bodiless() => body,
            _ => &[],
        }
    }

    /// Writes the head.
    pub(super) fn write_head(&self, out: &mut impl HeadWriter, context: ReplyContext<'_>) {
        let edits = context.edits;
        out.status_line(self.status, phrase(self.status).as_bytes());
        self.field(out, edits, "Date", context.date.as_bytes());
        if !self.is_bodiless() {
            let (kind, length) = self
                .body
                .as_ref()
                .map_or(("", 0), |(kind, body)| (*kind, body.len()));
            if !kind.is_empty() {
                self.field(out, edits, "Content-Type", kind.as_bytes());
            }
            out.framing(BodyFraming::Length(length as u64));
        }
        for (name, value) in self.headers {
            if self.is_free(name, edits) {
                out.field(name.as_bytes(), value.as_bytes());
            }
        }
        self.write_special_fields(out, edits);
        let (name, id) = context.request_id;
        if !id.is_empty() {
            self.field(out, edits, name, id.as_bytes());
        }
        if let Some(edits) = edits {
            for (name, value) in edits.set.iter().chain(&edits.add) {
                if !self.keeps(name) {
                    out.field(name.as_bytes(), value.as_bytes());
                }
            }
        }
        let connection: &[u8] = if context.keep_alive {
            b"keep-alive"
        } else {
            b"close"
        };
        out.http1_field(b"Connection", connection);
        out.end();
    }

    /// Writes the fields of gRPC calls, of redirects and of errors.
    fn write_special_fields(&self, out: &mut impl HeadWriter, edits: Option<&HeaderEdits>) {
        if let Some((status, message)) = self.call {
            self.field(out, edits, "grpc-status", status.to_string().as_bytes());
            self.field(out, edits, "grpc-message", message.as_bytes());
        }
        if let Some(location) = &self.location {
            self.field(out, edits, "Location", location.as_bytes());
        }
        let Some(reason) = self.reason else { return };
        self.field(out, edits, "Cache-Control", b"no-store");
        let status = format!("balancer; error={}", reason.token());
        self.field(out, edits, "Proxy-Status", status.as_bytes());
        if self.retry_after > 0 {
            let seconds = self.retry_after.to_string();
            self.field(out, edits, "Retry-After", seconds.as_bytes());
        }
        if reason == Reason::MethodNotAllowed {
            let methods = b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH";
            self.field(out, edits, "Allow", methods);
        }
    }
}

impl Exchange<'_> {
    /// Responds with a redirect. An HTTP/1.0 client may name no host: then there is no https URL.
    pub(super) async fn redirect(&mut self, to: &RedirectConfig) -> AfterExchange {
        let head = &self.buffers.request;
        let host = head.text(head.host);
        if host.is_empty() && matches!(to, RedirectConfig::Https { .. }) {
            return self.fail(Reason::RequestError).await;
        }
        let reply = redirect(to, host, head.text(head.target));
        self.reply(&reply).await
    }

    /// Responds with an error.
    pub(super) async fn fail(&mut self, reason: Reason) -> AfterExchange {
        self.record.reason = Some(reason);
        let reply = error(reason, &self.context.snapshot.config.errors, self.head());
        self.reply(&reply).await
    }

    /// Responds with an error that is over after `wait`.
    pub(super) async fn fail_for(&mut self, reason: Reason, wait: Duration) -> AfterExchange {
        self.record.reason = Some(reason);
        let mut reply = error(reason, &self.context.snapshot.config.errors, self.head());
        reply.retry_after = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.reply(&reply).await
    }

    /// Responds with an error after forwarding has begun.
    pub(super) async fn fail_forwarding(
        &mut self,
        reason: Reason,
        upload: &BodyRelay,
    ) -> AfterExchange {
        if matches!(
            reason,
            Reason::ClientDisconnected | Reason::ClientWriteTimeout
        ) {
            self.record.reason = Some(reason);
            return AfterExchange::Reset;
        }
        self.request_read |= upload.has_read_all();
        self.fail(reason).await
    }

    /// Sends a response of our own.
    pub(super) async fn reply(&mut self, reply: &LocalReply<'_>) -> AfterExchange {
        let keep_alive = self.client_reuse().keeps();
        self.record.status = reply.status;
        match self.send_reply(reply, keep_alive).await {
            Err(reason) => {
                self.record.reason.get_or_insert(reason);
                AfterExchange::Reset
            }
            Ok(()) => after_response(keep_alive, self.client_asked_to_close),
        }
    }

    async fn send_reply(&mut self, reply: &LocalReply<'_>, keep_alive: bool) -> Result<(), Reason> {
        let timeouts = &self.context.listener.config.timeouts;
        self.client.head_ready(timeouts, None).await?;
        let ExchangeBuffers {
            request,
            request_id,
            client_out,
            ..
        } = &mut *self.buffers;
        let config = &self.context.snapshot.config;
        let route = self.record.route.and_then(|route| config.routes.get(route));
        let is_head = request.text(request.method) == b"HEAD";
        let content = reply.content(is_head);
        self.record.bytes_out = content.len() as u64;
        client_out.clear();
        let side = &self.client.side;
        let head_bytes = self.context.worker.with_date(|date| {
            let context = ReplyContext {
                keep_alive,
                request_id: (&config.forwarded.request_id, request_id),
                date,
                edits: route.map(|route| &route.response_headers),
            };
            match side {
                ClientSide::H1(_) => {
                    reply.write_head(&mut TextHead::new(client_out), context);
                    Ok(0)
                }
                ClientSide::H2(side) => {
                    let write = |block: &mut BlockHead<'_>| reply.write_head(block, context);
                    side.stream.send_head(content.is_empty(), write)
                }
            }
        });
        let head_bytes = head_bytes.map_err(|_| Reason::ClientDisconnected)?;
        client_out.extend_from_slice(content);
        let written = self.client.write_all(client_out, true, timeouts).await;
        let sent = head_bytes + client_out.len();
        self.context.counters().sent.add(sent as u64);
        written
    }
}

/// Encodes the whole response to a connection that is not served, and counts it.
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
        reply.write_head(
            &mut TextHead::new(out),
            ReplyContext {
                keep_alive: false,
                request_id: (&snapshot.config.forwarded.request_id, &request_id),
                date,
                edits: None,
            },
        );
    });
    out.extend_from_slice(reply.content(false));
    snapshot.unrouted.mine().error(reason, reply.status);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::{
        block_head::BlockHead,
        hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits},
    };

    /// Fields of the head as HTTP/2 has it.
    fn block(reply: &LocalReply<'_>, context: ReplyContext<'_>) -> Vec<String> {
        let (mut encoder, mut block) = (HpackEncoder::default(), Vec::new());
        encoder.begin_block(&mut block);
        reply.write_head(&mut BlockHead::new(&mut encoder, &mut block), context);
        let limits = SizeLimits {
            kept: 4096,
            decoded: 4096,
        };
        let mut fields = FieldList::default();
        let decoded = HpackDecoder::default().decode(&block, limits, &mut fields);
        decoded.unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let lines = fields.iter();
        lines
            .map(|(name, value)| format!("{}: {}", text(name), text(value)))
            .collect()
    }

    #[test]
    fn a_reply_is_the_same_in_both_formats() {
        let edits = HeaderEdits {
            set: vec![("X-A".to_owned(), "b".to_owned())],
            remove: vec!["Date".to_owned()],
            ..HeaderEdits::default()
        };
        let context = ReplyContext {
            keep_alive: true,
            request_id: ("X-Request-Id", "0123"),
            date: "now",
            edits: Some(&edits),
        };
        let errors = ErrorsConfig::default();
        let head = RequestHead::default();
        let error = error(Reason::MethodNotAllowed, &errors, &head);
        let redirect = RedirectConfig::Https {
            port: 443,
            status: 308,
        };
        let redirect = super::redirect(&redirect, b"a:80", b"/x");
        let without_content = LocalReply {
            status: 204,
            ..LocalReply::default()
        };
        for reply in [error, redirect, without_content] {
            let mut text = Vec::new();
            reply.write_head(&mut TextHead::new(&mut text), context);
            let text = String::from_utf8(text).unwrap();
            let head = text.strip_suffix("\r\n\r\n").unwrap();
            assert_eq!(reply.content(true), b"");
            let mut expected = vec![format!(":status: {}", reply.status)];
            for line in head.split("\r\n").skip(1) {
                let (name, value) = line.split_once(": ").unwrap();
                if name != "Connection" {
                    expected.push(format!("{}: {value}", name.to_ascii_lowercase()));
                }
            }
            assert!(head.ends_with("\r\nConnection: keep-alive"), "{head}");
            assert_eq!(block(&reply, context), expected);
        }
    }
}
