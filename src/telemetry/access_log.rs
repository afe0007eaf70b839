//! The access log: selects the exchanges to write, and writes one line for each of them.
//! docs/access-log.md describes the lines for users.
//!
//! Texts of clients are borrowed from the caller, and escaped and cut here: a client cannot forge,
//! break or flood a line. Each thread formats its lines in its own buffer and gives them to a
//! [`LogSink`], so nothing here waits.

use std::{cell::RefCell, time::Duration};

use super::{
    record::{AccessRecord, RequestText},
    sink::{LogName, LogSink},
    text,
};
use crate::{
    base::{clock, rng::Random},
    config::model::{self, AccessFormat},
    reason::Reason,
};

/// Maximum length of a line. `access_log.headers` that do not fit are omitted.
const MAX_LINE_BYTES: usize = 8 << 10;

// Maximum length of each text in bytes, after escaping. Their sum is below `MAX_LINE_BYTES`.
const MAX_PATH: usize = 2_048;
const MAX_AGENT: usize = 1_024;
const MAX_REFERER: usize = 1_024;
const MAX_HEADER: usize = 512;
const MAX_NAME: usize = 256;
const MAX_METHOD: usize = 64;

/// Logged status if the client disconnected before it got a response. nginx uses the same number.
const CLIENT_CLOSED_STATUS: u16 = 499;

thread_local! {
    /// Buffer for the line, kept so that a line needs no allocation.
    static LINE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Access log of one snapshot: its rules and its output.
#[derive(Debug, Clone)]
pub struct AccessLog {
    rules: model::AccessLogConfig,
    sink: Option<LogSink>,
    /// Sampling: a line is written if 64 random bits are not above this number; 0 for no sampling.
    sample_below: u64,
}

impl AccessLog {
    /// Creates a log with the rules of `config`. Without a sink it writes nothing.
    pub fn new(config: &model::AccessLogConfig, sink: Option<LogSink>) -> Self {
        Self {
            rules: config.clone(),
            sink,
            sample_below: (config.when.sample * u64::MAX as f64) as u64,
        }
    }

    /// Returns true if the exchange is to be written.
    ///
    /// Called for each exchange, before its texts are collected, so it must be cheap.
    #[inline]
    pub fn wants(
        &self,
        status: u16,
        reason: Option<Reason>,
        took: Duration,
        random: &mut Random,
    ) -> bool {
        let when = &self.rules.when;
        self.sink.is_some()
            && (status >= when.min_status
                || reason.is_some()
                || when.slower_than.is_some_and(|limit| took > limit)
                || (self.sample_below > 0 && random.bits() <= self.sample_below))
    }

    /// Names in `access_log.headers`, in lower case: `write` needs their values.
    pub fn header_names(&self) -> &[String] {
        &self.rules.headers
    }

    /// Writes one line.
    ///
    /// `headers` are pairs of a name in [`AccessLog::header_names`] and its value. `took` is the
    /// duration of the exchange, which ends now.
    pub fn write(
        &self,
        record: &AccessRecord,
        text: &RequestText<'_>,
        headers: &[(&str, &[u8])],
        took: Duration,
    ) {
        let Some(sink) = &self.sink else { return };
        let began = clock::unix_now().saturating_sub(took);
        LINE_BUFFER.with_borrow_mut(|line| {
            line.clear();
            match self.rules.format {
                AccessFormat::Json => json_line(line, began, record, text, headers, took),
                AccessFormat::Combined => combined_line(line, began, record, text),
            }
            sink.write(LogName::Access, line);
        });
    }
}

/// Status in the line; `None` if no status was sent.
fn shown_status(record: &AccessRecord, text: &RequestText<'_>) -> Option<u16> {
    match (record.status, record.reason) {
        (0, Some(Reason::ClientDisconnected)) if !text.protocol.is_empty() => {
            Some(CLIENT_CLOSED_STATUS)
        }
        (0, _) => None,
        (status, _) => Some(status),
    }
}

fn name_of(name: Option<&str>) -> &[u8] {
    name.unwrap_or_default().as_bytes()
}

/// Path without the query. A query often contains secrets, such as tokens.
fn without_query(path: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    path.get(..end).unwrap_or(path)
}

/// Trace id in a `traceparent` (W3C Trace Context): `00-<32 hex>-<16 hex>-<2 hex>`.
fn trace_id(traceparent: &[u8]) -> Option<&[u8]> {
    let mut parts = traceparent.split(|byte| *byte == b'-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let is_hex = |text: &[u8]| {
        text.iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_set = trace.iter().any(|byte| *byte != b'0');
    (version.len() == 2 && trace.len() == 32 && is_hex(version) && is_hex(trace) && is_set)
        .then_some(trace)
}

/// Writer of the fields of a JSON object. A field without a value is omitted.
struct AccessFields<'a>(&'a mut Vec<u8>);

impl AccessFields<'_> {
    /// Appends a name. All names are constants that need no escape.
    #[inline]
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    #[inline]
    fn text(&mut self, name: &str, value: &[u8], limit: usize) {
        if !value.is_empty() {
            self.name(name);
            self.0.push(b'"');
            text::json_text(self.0, value, limit);
            self.0.push(b'"');
        }
    }

    #[inline]
    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        text::number(self.0, value);
    }

    #[inline]
    fn seconds(&mut self, name: &str, value: Option<Duration>) {
        if let Some(value) = value {
            self.name(name);
            text::seconds(self.0, value);
        }
    }
}

/// Appends a line in JSON.
fn json_line(
    line: &mut Vec<u8>,
    began: Duration,
    record: &AccessRecord,
    request: &RequestText<'_>,
    headers: &[(&str, &[u8])],
    took: Duration,
) {
    line.extend_from_slice(b"{\"ts\":\"");
    text::timestamp(line, began);
    line.push(b'"');
    request_fields(line, record, request);
    let mut fields = AccessFields(line);
    fields.text("route", name_of(record.route.as_deref()), MAX_NAME);
    fields.text("pool", name_of(record.pool.as_deref()), MAX_NAME);
    fields.text("backend", name_of(record.backend.as_deref()), MAX_NAME);
    if record.pool.is_some() {
        fields.number("attempts", u64::from(record.attempts));
        fields.name("reused");
        fields
            .0
            .extend_from_slice(if record.reused { b"true" } else { b"false" });
    }
    fields.seconds("t_request", record.request);
    fields.seconds("t_queue", record.queue);
    fields.seconds("t_connect", record.connect);
    fields.seconds("t_first_byte", record.first_byte);
    fields.seconds("t_total", Some(took));
    let reason = record.reason.map_or("", Reason::name);
    fields.text("reason", reason.as_bytes(), MAX_NAME);
    fields.text("request_id", request.request_id, MAX_NAME);
    fields.text(
        "trace_id",
        trace_id(request.traceparent).unwrap_or_default(),
        MAX_NAME,
    );
    fields.text("user_agent", request.user_agent, MAX_AGENT);
    fields.text("referer", request.referer, MAX_REFERER);
    header_fields(line, headers);
    line.extend_from_slice(b"}\n");
}

/// Appends the fields from `listener` to `bytes_out`.
fn request_fields(line: &mut Vec<u8>, record: &AccessRecord, request: &RequestText<'_>) {
    let mut fields = AccessFields(line);
    fields.text("listener", record.listener.as_bytes(), MAX_NAME);
    if let Some(client) = record.client {
        fields.name("client");
        fields.0.push(b'"');
        text::address(fields.0, client);
        fields.0.push(b'"');
    }
    // Sessions have no request, so they have no protocol either.
    let protocol = match request.protocol {
        "" => "TCP",
        http => http,
    };
    fields.text("protocol", protocol.as_bytes(), MAX_NAME);
    if !record.tls.is_empty() {
        fields.text("tls", record.tls.as_bytes(), MAX_NAME);
    }
    fields.text("method", request.method, MAX_METHOD);
    fields.text("host", request.host, MAX_NAME);
    fields.text("path", without_query(request.path), MAX_PATH);
    if let Some(status) = shown_status(record, request) {
        fields.number("status", u64::from(status));
    }
    fields.number("bytes_in", record.bytes_in);
    fields.number("bytes_out", record.bytes_out);
}

/// Appends the fields of `access_log.headers`: `x-tenant` becomes `header_x_tenant`.
fn header_fields(line: &mut Vec<u8>, headers: &[(&str, &[u8])]) {
    for (name, value) in headers {
        // The name, the longest value and the end of the line must fit.
        if line.len() + name.len() + MAX_HEADER + 32 > MAX_LINE_BYTES {
            return;
        }
        line.extend_from_slice(b",\"header_");
        line.extend(name.bytes().map(|byte| {
            if byte.is_ascii_alphanumeric() {
                byte
            } else {
                b'_'
            }
        }));
        line.extend_from_slice(b"\":\"");
        text::json_text(line, value, MAX_HEADER);
        line.push(b'"');
    }
}

/// Appends a line in the combined format:
/// `client - - [time] "method path protocol" status bytes "referer" "user agent"`.
fn combined_line(
    line: &mut Vec<u8>,
    began: Duration,
    record: &AccessRecord,
    request: &RequestText<'_>,
) {
    match record.client {
        Some(client) => text::address(line, client),
        None => line.push(b'-'),
    }
    line.extend_from_slice(b" - - [");
    text::common_log_time(line, began);
    line.extend_from_slice(b"] \"");
    if request.protocol.is_empty() {
        line.extend_from_slice(b"TCP ");
        text::quoted(line, record.listener.as_bytes(), MAX_NAME);
    } else {
        text::quoted(line, request.method, MAX_METHOD);
        line.push(b' ');
        text::quoted(line, without_query(request.path), MAX_PATH);
        line.push(b' ');
        line.extend_from_slice(request.protocol.as_bytes());
    }
    line.extend_from_slice(b"\" ");
    match shown_status(record, request) {
        Some(status) => text::number(line, u64::from(status)),
        None => line.extend_from_slice(b"000"),
    }
    line.push(b' ');
    text::number(line, record.bytes_out);
    for (value, limit) in [
        (request.referer, MAX_REFERER),
        (request.user_agent, MAX_AGENT),
    ] {
        line.extend_from_slice(b" \"");
        let value = if value.is_empty() { &b"-"[..] } else { value };
        text::quoted(line, value, limit);
        line.push(b'"');
    }
    line.push(b'\n');
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
