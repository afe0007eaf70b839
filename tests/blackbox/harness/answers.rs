//! The table of error responses, copied by hand, so that a mistake in the program's table is
//! noticed.

use serde_json::Value;

use super::{client::HttpResponse, daemon::TestDaemon};

/// Reason, `Proxy-Status` token and detail of every error response.
const ERROR_RESPONSES: &[(&str, &str, &str)] = &[
    (
        "destination_unavailable",
        "destination_unavailable",
        "No healthy upstream server is available to fulfill the request.",
    ),
    (
        "dns_error",
        "dns_error",
        "The name of the upstream server could not be resolved.",
    ),
    (
        "connection_refused",
        "connection_refused",
        "The upstream server refused the connection.",
    ),
    (
        "connection_timeout",
        "connection_timeout",
        "The upstream server did not accept the connection in time.",
    ),
    (
        "connection_terminated",
        "connection_terminated",
        "The upstream server closed the connection before it sent a complete response.",
    ),
    (
        "connection_read_timeout",
        "http_response_timeout",
        "The upstream server did not respond in time.",
    ),
    (
        "total_timeout",
        "http_response_timeout",
        "The request was not fulfilled in the time allowed for it.",
    ),
    (
        "tls_protocol_error",
        "tls_protocol_error",
        "A secure connection to the upstream server could not be established.",
    ),
    (
        "tls_certificate_error",
        "tls_certificate_error",
        "The upstream server could not prove its identity.",
    ),
    (
        "tls_required",
        "http_request_error",
        "This port speaks HTTPS, and the request came in plain HTTP.",
    ),
    (
        "misdirected_request",
        "http_request_error",
        "This connection is for another host.",
    ),
    (
        "proxy_protocol_error",
        "http_protocol_error",
        "The server received an invalid response from the upstream server while trying to fulfill the request.",
    ),
    (
        "http_response_header_section_size",
        "http_response_header_section_size",
        "The upstream server sent a response head that is too large.",
    ),
    (
        "connection_limit_reached",
        "connection_limit_reached",
        "The server is at its connection limit for this service.",
    ),
    (
        "overload",
        "connection_limit_reached",
        "The server is overloaded.",
    ),
    (
        "http_request_denied",
        "http_request_denied",
        "The request is not allowed from this address.",
    ),
    (
        "rate_limited",
        "http_request_denied",
        "Too many requests from this address.",
    ),
    (
        "http_request_error",
        "http_request_error",
        "The request is malformed.",
    ),
    (
        "http_request_header_section_size",
        "http_request_error",
        "The request header fields are too large.",
    ),
    (
        "http_request_uri_too_long",
        "http_request_error",
        "The request target is too long.",
    ),
    (
        "http_request_body_size",
        "http_request_error",
        "The request body is too large.",
    ),
    (
        "http_request_timeout",
        "http_request_error",
        "The request was not received in time.",
    ),
    (
        "http_upgrade_failed",
        "http_upgrade_failed",
        "The upstream server did not accept the change of protocol.",
    ),
    (
        "no_route",
        "destination_not_found",
        "No route matches the request.",
    ),
    (
        "method_not_allowed",
        "http_request_error",
        "The request method is not allowed.",
    ),
    (
        "expectation_failed",
        "http_request_error",
        "The expectation of the request cannot be met.",
    ),
    (
        "transfer_coding_unsupported",
        "http_request_error",
        "The transfer coding of the request is not supported.",
    ),
    (
        "version_not_supported",
        "http_request_error",
        "The protocol version of the request is not supported.",
    ),
    (
        "http_request_incomplete",
        "http_request_error",
        "The request body is malformed or incomplete.",
    ),
];

/// The phrase of a status, RFC 9110 section 15 and RFC 6585.
fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        other => panic!("no phrase for {other}"),
    }
}

fn row(reason: &str) -> (&'static str, &'static str) {
    let row = ERROR_RESPONSES.iter().find(|(name, ..)| *name == reason);
    let (_, token, detail) = row.unwrap_or_else(|| panic!("no answer for `{reason}`"));
    (token, detail)
}

/// The JSON body for `reason` answered with `status`.
pub fn json_body(status: u16, reason: &str) -> String {
    format!(
        "{{\"error\":{{\"code\":{status},\"message\":\"{}\",\"details\":\"{}\"}}}}",
        phrase(status),
        row(reason).1
    )
}

/// Checks everything but the body; gives the request id.
#[track_caller]
pub fn expect_error_head(response: &HttpResponse, status: u16, reason: &str) -> String {
    let seen = format!("{reason}: {response:?}");
    assert_eq!(response.status, status, "{seen}");
    let one = |name: &str| {
        assert_eq!(response.count(name), 1, "one {name} in {seen}");
        response.header(name).unwrap()
    };
    let status_field = format!("balancer; error={}", row(reason).0);
    assert_eq!(one("Proxy-Status"), status_field, "{seen}");
    assert_eq!(one("Cache-Control"), "no-store", "{seen}");
    let tells_when = matches!(
        reason,
        "destination_unavailable" | "connection_limit_reached" | "overload" | "rate_limited"
    );
    assert_eq!(response.count("Retry-After"), usize::from(tells_when));
    if tells_when {
        one("Retry-After").parse::<u32>().expect("seconds");
    }
    assert!(response.count("Transfer-Encoding") == 0, "{seen}");
    one("Content-Length").parse::<u64>().expect("a length");
    one("Date");
    let id = one("X-Request-Id");
    assert!(id.len() >= 16, "a request id in {seen}");
    id.to_owned()
}

/// Checks a whole JSON error response; gives the request id.
#[track_caller]
pub fn expect_error(response: &HttpResponse, status: u16, reason: &str) -> String {
    let id = expect_error_head(response, status, reason);
    assert_eq!(response.text(), json_body(status, reason));
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    assert_eq!(
        response.header("Content-Length"),
        Some(response.body.len().to_string().as_str())
    );
    id
}

impl TestDaemon {
    /// The access log's line with this request id.
    pub fn access_of(&self, request_id: &str) -> Value {
        self.wait_for_access(|line| line["request_id"] == request_id)
    }
}
