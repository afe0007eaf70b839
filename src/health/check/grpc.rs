//! A grpc check: `grpc.health.v1.Health/Check` must return SERVING, over HTTP/2. `grpc_message.rs`
//! encodes the messages.

use std::time::Duration;

use super::{
    error::CheckError,
    exchange::{CheckRequest, CheckResponse, CheckStream, USER_AGENT},
    phases::PhaseClock,
};
use crate::{
    health::grpc_message::{self, MAX_MESSAGE_BYTES, PREFIX_BYTES, ServingStatus},
    http::{grpc::is_grpc, message::BodyFraming},
};

const CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
const STATUS_OK: u32 = 0;
const STATUS_NOT_FOUND: u32 = 5;
const STATUS_UNIMPLEMENTED: u32 = 12;

/// Names of `grpc-status`, by number.
const STATUS_NAMES: [&str; 17] = [
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

/// A grpc check of one backend.
pub(super) struct GrpcProbe<'a> {
    /// The service that is asked for; empty is the server as a whole.
    pub service: &'a str,
    pub authority: &'a str,
    pub timeout: Duration,
    pub phases: &'a PhaseClock,
}

impl GrpcProbe<'_> {
    /// Calls the health service on an HTTP/2 `stream`.
    pub(super) async fn run(&self, stream: CheckStream) -> Result<(), CheckError> {
        let message = grpc_message::encode_request(self.service);
        // The header takes at most eight digits; checks are limited to an hour.
        let deadline = format!("{}m", self.timeout.as_millis());
        let request = CheckRequest {
            method: "POST",
            path: CHECK_PATH,
            authority: self.authority,
            fields: &[
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("grpc-timeout", &deadline),
                ("user-agent", USER_AGENT),
            ],
            // A call has no length.
            framing: BodyFraming::Streamed(None),
            content: &message,
            phases: self.phases,
        };
        let response = CheckResponse::fetch(stream, &request).await?;
        judge(response, self.service).await
    }
}

/// Judges the response: a whole gRPC call with status OK and the message SERVING.
async fn judge(mut response: CheckResponse, service: &str) -> Result<(), CheckError> {
    if response.head.status != 200 {
        let cause = format!("status {}, expected 200", response.head.status);
        return Err(CheckError::unexpected(cause));
    }
    if !is_grpc(response.field("content-type").unwrap_or_default()) {
        return Err(CheckError::unexpected(
            "answer is not gRPC, by its content-type",
        ));
    }
    let mut message = Vec::new();
    while let Some(data) = response.next().await {
        message.extend_from_slice(&data?);
        if message.len() > PREFIX_BYTES + MAX_MESSAGE_BYTES {
            return Err(CheckError::unexpected("answer is too long"));
        }
    }
    let trailers = response.trailers();
    let status = match trailers.is_empty() {
        // A call that fails at once sends a head alone, with the status in it ("Trailers-Only").
        true if message.is_empty() => response.field("grpc-status"),
        true => return Err(CheckError::unexpected("answer ends without a grpc-status")),
        false => trailers.find(b"grpc-status"),
    };
    let status = status.ok_or_else(|| CheckError::unexpected("answer has no grpc-status"))?;
    let status = std::str::from_utf8(status)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let status = status.ok_or_else(|| CheckError::unexpected("grpc-status is not a number"))?;
    if status != STATUS_OK {
        return Err(CheckError::unexpected(status_cause(status, service)));
    }
    match grpc_message::decode_response(&message) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(CheckError::unexpected(format!("the backend says {other}"))),
        Err(invalid) => Err(CheckError::InvalidMessage(invalid)),
    }
}

/// The cause for a `grpc-status` other than OK.
fn status_cause(status: u32, service: &str) -> String {
    match (status, service) {
        (STATUS_UNIMPLEMENTED, _) => "the backend has no health service (UNIMPLEMENTED)".to_owned(),
        (STATUS_NOT_FOUND, "") => {
            "the backend does not know its health as a whole (NOT_FOUND)".to_owned()
        }
        (STATUS_NOT_FOUND, _) => {
            format!("the backend does not know the service `{service}` (NOT_FOUND)")
        }
        _ => match STATUS_NAMES.get(status as usize) {
            Some(name) => format!("grpc-status {status} {name}"),
            None => format!("grpc-status {status}, which has no name"),
        },
    }
}
