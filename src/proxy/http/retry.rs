//! Whether a failed try may be followed by another one: a total function of what happened and what the rules say.
//!
//! A request is never sent twice to backends that may have acted on it, unless its method is idempotent
//! (RFC 9110 section 9.2.2).

use crate::{config::model::RetriesConfig, net::h2::backend::StreamRefusal, reason::Reason};

/// How far a try had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptPhase {
    /// There was no connection: nothing was sent.
    Connect,
    /// On the way to a whole response head.
    Response,
}

/// A try that failed before anything of its answer reached the client.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct AttemptError {
    /// How far it had come.
    pub phase: AttemptPhase,
    /// What went wrong.
    pub reason: Reason,
    /// It used a keepalive connection on which no byte came back.
    pub stale: bool,
    /// The backend has refused it on a connection of HTTP/2, without having processed it.
    pub refusal: Option<StreamRefusal>,
    /// It was refused, or the backend ended the connection without its kernel having received a byte of the request, or
    /// nothing was written: the backend cannot have acted on it.
    pub not_processed: bool,
    /// A limit of ours has ended it: the backend is not to blame.
    pub own_limit: bool,
    /// What exactly, for the log at debug level.
    pub detail: String,
}

/// What the decision depends on besides the failure.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryContext {
    /// Further tries that are left.
    pub left: u32,
    /// The method is in `retries.methods`.
    pub idempotent: bool,
    /// The whole request can be sent again.
    pub replayable: bool,
    /// The exchange has not had its one attempt that costs nothing.
    pub free: bool,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Give up.
    Fail,
    /// Try again, if the budget allows.
    Retry,
    /// Try again at no cost, on a new connection: the old one was stale, or the backend has refused the request.
    Fresh,
}

/// Decides. See the head of this file.
pub(super) fn may_retry(
    failure: &AttemptError,
    context: RetryContext,
    rules: &RetriesConfig,
) -> RetryDecision {
    let on = rules.conditions;
    if !context.replayable {
        return RetryDecision::Fail;
    }
    let safe = context.idempotent || failure.not_processed;
    let refused = failure.refusal.is_some() && (on.connect || on.stale);
    let stale = failure.stale && failure.reason == Reason::ConnectionTerminated && on.stale && safe;
    if context.free && (refused || stale) {
        return RetryDecision::Fresh;
    }
    let allowed = match (failure.phase, failure.reason) {
        (AttemptPhase::Connect, _) => on.connect,
        (AttemptPhase::Response, Reason::ConnectionTerminated)
            if failure.not_processed && (on.connect || on.stale) =>
        {
            true
        }
        (AttemptPhase::Response, Reason::ConnectionTerminated) => {
            on.terminated && context.idempotent
        }
        (AttemptPhase::Response, Reason::ConnectionReadTimeout) => on.timeout && context.idempotent,
        (
            AttemptPhase::Response,
            Reason::ProxyProtocolError | Reason::ResponseHeaderSectionSize,
        ) => on.invalid && context.idempotent,
        _ => false,
    };
    if allowed && context.left > 0 {
        RetryDecision::Retry
    } else {
        RetryDecision::Fail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::RetryConditions;

    fn rules() -> RetriesConfig {
        RetriesConfig {
            methods: vec!["GET".to_owned()],
            ..RetriesConfig::default()
        }
    }

    fn verdict(
        phase: AttemptPhase,
        reason: Reason,
        (stale, not_processed): (bool, bool),
        idempotent: bool,
    ) -> RetryDecision {
        let failure = AttemptError {
            phase,
            reason,
            stale,
            refusal: None,
            not_processed,
            own_limit: false,
            detail: String::new(),
        };
        may_retry(
            &failure,
            RetryContext {
                left: 1,
                idempotent,
                replayable: true,
                free: true,
            },
            &rules(),
        )
    }

    #[test]
    fn each_failure_has_its_verdict() {
        use AttemptPhase::{Connect, Response};
        use RetryDecision::{Fail, Fresh, Retry};
        const FIRST: (bool, bool) = (false, false);
        let table = [
            (Connect, Reason::ConnectionRefused, FIRST, Retry, Retry),
            (Connect, Reason::ConnectionTimeout, FIRST, Retry, Retry),
            (Connect, Reason::DnsError, FIRST, Retry, Retry),
            (Response, Reason::ConnectionTerminated, FIRST, Retry, Fail),
            (
                Response,
                Reason::ConnectionTerminated,
                (true, false),
                Fresh,
                Fail,
            ),
            (
                Response,
                Reason::ConnectionTerminated,
                (true, true),
                Fresh,
                Fresh,
            ),
            (
                Response,
                Reason::ConnectionTerminated,
                (false, true),
                Retry,
                Retry,
            ),
            (Response, Reason::ConnectionReadTimeout, FIRST, Fail, Fail),
            (Response, Reason::ProxyProtocolError, FIRST, Retry, Fail),
            (
                Response,
                Reason::ResponseHeaderSectionSize,
                FIRST,
                Retry,
                Fail,
            ),
            (Response, Reason::TotalTimeout, FIRST, Fail, Fail),
            (Response, Reason::RequestTimeout, FIRST, Fail, Fail),
        ];
        for (phase, reason, state, idempotent, other) in table {
            assert_eq!(
                verdict(phase, reason, state, true),
                idempotent,
                "{phase:?} {reason} {state:?} GET"
            );
            assert_eq!(
                verdict(phase, reason, state, false),
                other,
                "{phase:?} {reason} {state:?} POST"
            );
        }
    }

    #[test]
    fn without_tries_or_body_there_is_no_retry() {
        let failure = |stale| AttemptError {
            phase: AttemptPhase::Response,
            reason: Reason::ConnectionTerminated,
            stale,
            refusal: None,
            not_processed: true,
            own_limit: false,
            detail: String::new(),
        };
        let ask = |left, replayable| RetryContext {
            left,
            idempotent: true,
            replayable,
            free: true,
        };
        assert_eq!(
            may_retry(&failure(false), ask(0, true), &rules()),
            RetryDecision::Fail
        );
        assert_eq!(
            may_retry(&failure(false), ask(1, false), &rules()),
            RetryDecision::Fail
        );
        assert_eq!(
            may_retry(&failure(true), ask(0, true), &rules()),
            RetryDecision::Fresh
        );
        assert_eq!(
            may_retry(&failure(true), ask(0, false), &rules()),
            RetryDecision::Fail
        );
    }

    #[test]
    fn conditions_can_be_switched_off() {
        let mut rules = rules();
        rules.conditions = RetryConditions {
            connect: false,
            stale: false,
            terminated: false,
            timeout: true,
            invalid: false,
        };
        let ask = RetryContext {
            left: 1,
            idempotent: true,
            replayable: true,
            free: true,
        };
        for (phase, reason, stale) in [
            (AttemptPhase::Connect, Reason::ConnectionRefused, false),
            (AttemptPhase::Response, Reason::ConnectionTerminated, true),
            (AttemptPhase::Response, Reason::ConnectionTerminated, false),
            (AttemptPhase::Response, Reason::ProxyProtocolError, false),
        ] {
            let failure = AttemptError {
                phase,
                reason,
                stale,
                refusal: None,
                not_processed: true,
                own_limit: false,
                detail: String::new(),
            };
            assert_eq!(
                may_retry(&failure, ask, &rules),
                RetryDecision::Fail,
                "{reason}"
            );
        }
        let slow = AttemptError {
            phase: AttemptPhase::Response,
            reason: Reason::ConnectionReadTimeout,
            stale: false,
            refusal: None,
            not_processed: false,
            own_limit: false,
            detail: String::new(),
        };
        assert_eq!(may_retry(&slow, ask, &rules), RetryDecision::Retry);
    }
}
