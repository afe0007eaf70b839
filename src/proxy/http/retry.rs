//! The retry rule: decides whether a failed attempt may be followed by another one.
//!
//! A pure function of the failure and the settings. A request is never sent to a second backend
//! after one that may have acted on it, unless its method is idempotent (RFC 9110 section 9.2.2).

use super::outcome::{AttemptError, AttemptPhase};
use crate::{config::model::RetriesConfig, reason::Reason};

/// Facts besides the failure on which the decision depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryContext {
    /// Retries left.
    pub left: u32,
    /// The method is in `retries.methods`.
    pub idempotent: bool,
    /// The whole request can be sent again.
    pub replayable: bool,
    /// The one attempt that costs neither a retry nor budget was not made yet.
    pub free: bool,
}

/// The decision after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Give up.
    Fail,
    /// Make another attempt, if the budget allows.
    Retry,
    /// Make another attempt at no cost, on a new connection: the old one was stale, or the backend
    /// refused the request.
    Fresh,
}

/// Decides whether another attempt may follow `failure`.
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

    fn failed(reason: Reason) -> AttemptError {
        AttemptError::new(AttemptPhase::Response, reason, String::new())
    }

    fn decision(
        phase: AttemptPhase,
        reason: Reason,
        (stale, not_processed): (bool, bool),
        idempotent: bool,
    ) -> RetryDecision {
        let failure = AttemptError {
            stale,
            not_processed,
            ..AttemptError::new(phase, reason, String::new())
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
    fn each_failure_has_its_decision() {
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
                decision(phase, reason, state, true),
                idempotent,
                "{phase:?} {reason} {state:?} GET"
            );
            assert_eq!(
                decision(phase, reason, state, false),
                other,
                "{phase:?} {reason} {state:?} POST"
            );
        }
    }

    #[test]
    fn without_attempts_or_body_there_is_no_retry() {
        let failure = |stale| AttemptError {
            stale,
            not_processed: true,
            ..failed(Reason::ConnectionTerminated)
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
                stale,
                not_processed: true,
                ..AttemptError::new(phase, reason, String::new())
            };
            assert_eq!(
                may_retry(&failure, ask, &rules),
                RetryDecision::Fail,
                "{reason}"
            );
        }
        let slow = failed(Reason::ConnectionReadTimeout);
        assert_eq!(may_retry(&slow, ask, &rules), RetryDecision::Retry);
    }
}
