//! A grpc check: `grpc.health.v1.Health/Check` must say SERVING. What is spoken is HTTP/2; see `grpc_message.rs` for the bytes.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HOST, TE, TRANSFER_ENCODING, USER_AGENT},
};

use super::{
    AGENT,
    http::cannot_ask,
    http1::{self, describe},
};
use crate::{
    health::grpc_message::{self, Health, LONGEST, PREFIX},
    net::stream::Stream,
};

const PATH: &str = "/grpc.health.v1.Health/Check";
const OK: u32 = 0;
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;

/// Names of `grpc-status`, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Asks on `stream`, which is one of HTTP/2, for `service`; empty is the server as a whole.
pub(super) async fn ask(
    stream: Stream,
    service: &str,
    authority: &str,
    timeout: Duration,
) -> Result<(), String> {
    let request = Request::post(PATH)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        // At most eight digits: a check takes an hour at most.
        .header("grpc-timeout", format!("{}m", timeout.as_millis()))
        .header(USER_AGENT, AGENT)
        // A call has no length.
        .header(TRANSFER_ENCODING, "chunked")
        .body(Full::from(Bytes::from(grpc_message::request(service))))
        .map_err(|error| cannot_ask(&error))?;
    let judge = async |response| judge(response, service).await;
    http1::exchange(stream, request, judge).await
}

async fn judge(response: Response<Incoming>, service: &str) -> Result<(), String> {
    if response.status() != StatusCode::OK {
        return Err(format!(
            "status {}, expected 200",
            response.status().as_u16()
        ));
    }
    if !is_grpc(response.headers()) {
        return Err("answer is not gRPC, by its content-type".to_owned());
    }
    let (head, mut body) = response.into_parts();
    let (mut message, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| describe(&error))?.into_data() {
            Ok(data) => message.put(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if message.len() > PREFIX + LONGEST {
            return Err("answer is too long".to_owned());
        }
    }
    let status = match &trailers {
        Some(trailers) => status(trailers)?,
        // The head is all there is: it has what trailers have.
        None if message.is_empty() => status(&head.headers)?,
        None => return Err("answer ends without a grpc-status".to_owned()),
    };
    if status != OK {
        return Err(refusal(status, service));
    }
    match grpc_message::response(&message) {
        Ok(Health::Serving) => Ok(()),
        Ok(other) => Err(format!("the backend says {other}")),
        Err(invalid) => Err(format!("answer is not a HealthCheckResponse: {invalid}")),
    }
}

/// `application/grpc`, with or without a suffix.
fn is_grpc(fields: &HeaderMap) -> bool {
    let kind = fields
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |kind| kind.as_bytes());
    let (start, rest) = kind.split_at_checked(16).unwrap_or_default();
    start.eq_ignore_ascii_case(b"application/grpc") && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}

fn status(fields: &HeaderMap) -> Result<u32, String> {
    let status = fields
        .get("grpc-status")
        .ok_or("answer has no grpc-status")?;
    let number = status.to_str().ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| "grpc-status is not a number".to_owned())
}

/// What a `grpc-status` other than OK means here.
fn refusal(status: u32, service: &str) -> String {
    match (status, service) {
        (UNIMPLEMENTED, _) => "the backend has no health service (UNIMPLEMENTED)".to_owned(),
        (NOT_FOUND, "") => "the backend does not know its health as a whole (NOT_FOUND)".to_owned(),
        (NOT_FOUND, _) => format!("the backend does not know the service `{service}` (NOT_FOUND)"),
        _ => match CODES.get(status as usize) {
            Some(name) => format!("grpc-status {status} {name}"),
            None => format!("grpc-status {status}, which has no name"),
        },
    }
}
