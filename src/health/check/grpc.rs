//! A grpc check: `grpc.health.v1.Health/Check` must say SERVING. What is spoken is HTTP/2; see `grpc_message.rs` for the bytes.

use std::time::Duration;

use super::{CheckError, USER_AGENT, http1::CheckResponse};
use crate::{
    health::grpc_message::{self, MAX_MESSAGE_BYTES, PREFIX_BYTES, ServingStatus},
    http2,
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
) -> Result<(), CheckError> {
    let message = grpc_message::encode_request(service);
    // The timeout has at most eight digits: a check takes an hour at most. A call has no length.
    let mut request = format!(
        "POST {PATH} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/grpc\r\nte: trailers\r\n\
         grpc-timeout: {}m\r\nuser-agent: {USER_AGENT}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        timeout.as_millis(),
        message.len(),
    )
    .into_bytes();
    request.extend_from_slice(&message);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    let response = CheckResponse::ask(stream, "POST", &request).await?;
    judge(response, service).await
}

async fn judge(mut response: CheckResponse, service: &str) -> Result<(), CheckError> {
    if response.head.status != 200 {
        return Err(format!("status {}, expected 200", response.head.status).into());
    }
    if !http2::is_grpc(response.field("content-type").unwrap_or_default()) {
        return Err(failed("answer is not gRPC, by its content-type"));
    }
    let mut message = Vec::new();
    while let Some(data) = response.next().await {
        message.extend_from_slice(&data?);
        if message.len() > PREFIX_BYTES + MAX_MESSAGE_BYTES {
            return Err(failed("answer is too long"));
        }
    }
    let status = match response.trailers() {
        // The head is all there is: it has what trailers have.
        [] if message.is_empty() => response.field("grpc-status"),
        [] => return Err(failed("answer ends without a grpc-status")),
        trailers => trailer(trailers, b"grpc-status"),
    };
    let status = status.ok_or_else(|| failed("answer has no grpc-status"))?;
    let status = std::str::from_utf8(status)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let status = status.ok_or_else(|| failed("grpc-status is not a number"))?;
    if status != OK {
        return Err(refusal(status, service).into());
    }
    match grpc_message::decode_response(&message) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("the backend says {other}").into()),
        Err(invalid) => Err(format!("answer is not a HealthCheckResponse: {invalid}").into()),
    }
}

fn failed(cause: &str) -> CheckError {
    CheckError::Failed(cause.to_owned())
}

/// The value of the field `name` in the lines of a trailer section.
fn trailer<'a>(lines: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    lines.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let (found, value) = line.split_at(colon);
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
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
