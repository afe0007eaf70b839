//! gRPC: errors are fields of a 200, and the client sends its own timeout.
//!
//! Pure. Streaming and trailers need no special handling.

use std::time::Duration;

use crate::{
    http::{
        fields::KnownField,
        grpc::{grpc_timeout, is_grpc},
        message::RequestHead,
    },
    reason::Reason,
};

/// True if the request is a gRPC call, by its content type.
pub(super) fn is_call(head: &RequestHead) -> bool {
    head.find(KnownField::ContentType).is_some_and(is_grpc)
}

/// The status of a call that failed for `reason`: DEADLINE_EXCEEDED or UNAVAILABLE.
pub(super) const fn status(reason: Reason) -> u8 {
    match reason {
        Reason::TotalTimeout => 4,
        _ => 14,
    }
}

/// The client's `grpc-timeout` for the whole call.
pub(super) fn timeout(head: &RequestHead) -> Option<Duration> {
    if !is_call(head) {
        return None;
    }
    let value = head.fields.values("grpc-timeout", &head.bytes).next()?;
    grpc_timeout(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::rules::HeadLimits, http1::request};

    fn call(fields: &str) -> RequestHead {
        let mut head = RequestHead {
            bytes: format!("POST /a.B/C HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes(),
            ..RequestHead::default()
        };
        let limits = HeadLimits {
            fields: 20,
            bytes: 4096,
        };
        assert_eq!(request::parse(&mut head, limits), Ok(true));
        head
    }

    #[test]
    fn a_call_is_known_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=x", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let head = call(&format!("Content-Type: {kind}\r\n"));
            assert_eq!(is_call(&head), expected, "{kind}");
        }
        assert!(!is_call(&call("")));
    }

    #[test]
    fn a_timeout_has_a_unit_and_few_digits() {
        for (text, expected) in [
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("123456789S", None),
            ("S", None),
            ("-1S", None),
            ("1", None),
            ("1s", None),
            ("soon", None),
        ] {
            let fields = format!("Content-Type: application/grpc\r\ngrpc-timeout: {text}\r\n");
            assert_eq!(timeout(&call(&fields)), expected, "{text}");
        }
        assert_eq!(timeout(&call("grpc-timeout: 1S\r\n")), None, "no call");
    }
}
