//! Outcomes of attempts and exchanges, and the two rules by which a connection is kept after one.
//!
//! Pure: nothing here reads or writes.

use crate::{h2::backend::StreamRefusal, reason::Reason};

/// Use of the client's connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterExchange {
    /// Another request may follow.
    KeepAlive,
    /// Close it.
    Close,
    /// Close it once the client had time to read the response: it may still be sending.
    Linger,
    /// Reset it, so that an incomplete response does not look complete.
    Reset,
    /// The client sent the HTTP/2 preface.
    Http2,
}

/// Outcome of an attempt that no other backend can better.
pub(super) enum AttemptOutcome {
    /// The client got a response, or part of one.
    Responded(AfterExchange),
    /// The exchange fails, and no backend is to blame: the client left or asked for something
    /// impossible, the total timeout passed, or another limit of ours was reached.
    Failed(Reason),
}

/// Progress of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptPhase {
    /// No connection yet: nothing was sent.
    Connect,
    /// Connected, and no complete response head yet.
    Response,
}

/// A failed attempt of which nothing has reached the client.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct AttemptError {
    /// Progress until then.
    pub phase: AttemptPhase,
    /// The kind of failure.
    pub reason: Reason,
    /// An idle connection was reused, and the backend closed it without a byte.
    pub stale: bool,
    /// The backend refused the HTTP/2 stream without processing it.
    pub refusal: Option<StreamRefusal>,
    /// The backend cannot have acted on the request: it refused it, its kernel received no byte
    /// of it, or nothing was written ("not processed", RFC 9113 section 8.7).
    pub not_processed: bool,
    /// A limit of ours ended it: the backend is not to blame.
    pub own_limit: bool,
    /// Details for the log at debug level.
    pub detail: String,
}

impl AttemptError {
    /// A failure that the backend is to blame for, after which the request may have been acted on
    /// unless it was never connected.
    pub(super) fn new(phase: AttemptPhase, reason: Reason, detail: String) -> Self {
        Self {
            phase,
            reason,
            stale: false,
            refusal: None,
            not_processed: phase == AttemptPhase::Connect,
            own_limit: false,
            detail,
        }
    }

    /// True if the connection failed rather than the backend: the next connection to the same
    /// backend may do.
    pub(super) fn is_of_connection(&self) -> bool {
        match self.refusal {
            Some(refusal) => refusal != StreamRefusal::Outright,
            None => self.stale,
        }
    }
}

/// The rule by which a client's connection is kept after a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientReuse {
    /// The request allows it: it is valid, and did not ask for `close`.
    pub requested: bool,
    /// We close it after this response: the daemon drains, or the pipelining limit is reached.
    pub must_close: bool,
    /// The request was read to its end. Its rest would be taken for the next request.
    pub request_read: bool,
    /// The response ends before its connection does.
    pub response_delimited: bool,
}

impl ClientReuse {
    /// True if another request may follow.
    pub(super) const fn keeps(self) -> bool {
        self.requested && !self.must_close && self.request_read && self.response_delimited
    }
}

/// Use of the client's connection after a complete response that announced whether it is kept.
/// `client_is_done`: the client asked for the close and has sent everything, so there is nothing
/// that it could still be sending.
pub(super) const fn after_response(kept: bool, client_is_done: bool) -> AfterExchange {
    match (kept, client_is_done) {
        (true, _) => AfterExchange::KeepAlive,
        (false, true) => AfterExchange::Close,
        (false, false) => AfterExchange::Linger,
    }
}

/// Use of the client's connection after a response was cut for `reason`.
pub(super) const fn after_cut(reason: Reason, until_close: bool) -> AfterExchange {
    // The client does not read what is still to be sent: the kernel must not keep it.
    let is_unread = matches!(
        reason,
        Reason::ClientDisconnected | Reason::ClientWriteTimeout
    );
    // A body that ends with the connection would look complete after a FIN.
    if until_close || is_unread {
        AfterExchange::Reset
    } else {
        AfterExchange::Close
    }
}

/// The rule by which a backend's connection is kept after a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackendReuse {
    /// The backend allows it.
    pub requested: bool,
    /// The request was sent before the response came. A backend that responds earlier may leave
    /// the rest of the request unread, and take it for another one.
    pub request_sent: bool,
    /// The response ends before its connection does.
    pub response_delimited: bool,
    /// The response was read to its end and not beyond: further bytes belong to no request.
    pub exact: bool,
}

impl BackendReuse {
    /// True if another exchange may use it.
    pub(super) const fn keeps(self) -> bool {
        self.requested && self.request_sent && self.response_delimited && self.exact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_connection_is_kept_only_if_nothing_speaks_against_it() {
        let all = ClientReuse {
            requested: true,
            must_close: false,
            request_read: true,
            response_delimited: true,
        };
        for (reuse, keeps) in [
            (all, true),
            (
                ClientReuse {
                    requested: false,
                    ..all
                },
                false,
            ),
            (
                ClientReuse {
                    must_close: true,
                    ..all
                },
                false,
            ),
            (
                ClientReuse {
                    request_read: false,
                    ..all
                },
                false,
            ),
            (
                ClientReuse {
                    response_delimited: false,
                    ..all
                },
                false,
            ),
        ] {
            assert_eq!(reuse.keeps(), keeps, "{reuse:?}");
        }
        for (kept, client_is_done, expected) in [
            (true, false, AfterExchange::KeepAlive),
            (true, true, AfterExchange::KeepAlive),
            (false, true, AfterExchange::Close),
            (false, false, AfterExchange::Linger),
        ] {
            assert_eq!(after_response(kept, client_is_done), expected);
        }
    }

    #[test]
    fn a_cut_response_never_looks_complete() {
        for (reason, until_close, expected) in [
            (Reason::ResponseIncomplete, false, AfterExchange::Close),
            (Reason::ResponseIncomplete, true, AfterExchange::Reset),
            (Reason::TotalTimeout, false, AfterExchange::Close),
            (Reason::ClientDisconnected, false, AfterExchange::Reset),
            (Reason::ClientWriteTimeout, false, AfterExchange::Reset),
            (Reason::ClientWriteTimeout, true, AfterExchange::Reset),
        ] {
            assert_eq!(after_cut(reason, until_close), expected, "{reason}");
        }
    }

    #[test]
    fn a_backend_connection_is_kept_only_if_nothing_speaks_against_it() {
        let all = BackendReuse {
            requested: true,
            request_sent: true,
            response_delimited: true,
            exact: true,
        };
        for (reuse, keeps) in [
            (all, true),
            (
                BackendReuse {
                    requested: false,
                    ..all
                },
                false,
            ),
            (
                BackendReuse {
                    request_sent: false,
                    ..all
                },
                false,
            ),
            (
                BackendReuse {
                    response_delimited: false,
                    ..all
                },
                false,
            ),
            (
                BackendReuse {
                    exact: false,
                    ..all
                },
                false,
            ),
        ] {
            assert_eq!(reuse.keeps(), keeps, "{reuse:?}");
        }
    }
}
