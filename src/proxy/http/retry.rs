//! Whether a failed try may be followed by another one: a total function of what happened and what the rules say.
//!
//! A request is never sent twice to backends that may have acted on it, unless its method is idempotent
//! (RFC 9110 section 9.2.2).

use crate::{config::model::RetriesConfig, net::h2::backend::StreamRefusal, reason::Reason};

/// How far a try had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// There was no connection: nothing was sent.
    Connect,
    /// On the way to a whole response head.
    Response,
}

/// A try that failed before anything of its answer reached the client.
#[derive(Debug)]
pub(super) struct Failure {
    /// How far it had come.
    pub stage: Stage,
    /// What went wrong.
    pub reason: Reason,
    /// It used a keepalive connection on which no byte came back.
    pub stale: bool,
    /// The backend has refused it on a connection of HTTP/2, without having processed it.
    pub refusal: Option<StreamRefusal>,
    /// It was refused, or the backend ended the connection without its kernel having received a byte of the request, or
    /// nothing was written: the backend cannot have acted on it.
    pub unseen: bool,
    /// A limit of ours has ended it: the backend is not to blame.
    pub own_limit: bool,
    /// What exactly, for the log at debug level.
    pub detail: String,
}

/// What the decision depends on besides the failure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
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
pub(super) enum Verdict {
    /// Give up.
    Fail,
    /// Try again, if the budget allows.
    Retry,
    /// Try again at no cost, on a new connection: the old one was stale, or the backend has refused the request.
    Fresh,
}

/// Decides. See the head of this file.
pub(super) fn may_retry(failure: &Failure, question: Question, rules: &RetriesConfig) -> Verdict {
    let on = rules.conditions;
    if !question.replayable {
        return Verdict::Fail;
    }
    let safe = question.idempotent || failure.unseen;
    let refused = failure.refusal.is_some() && (on.connect || on.stale);
    let stale = failure.stale && failure.reason == Reason::ConnectionTerminated && on.stale && safe;
    if question.free && (refused || stale) {
        return Verdict::Fresh;
    }
    let allowed = match (failure.stage, failure.reason) {
        (Stage::Connect, _) => on.connect,
        (Stage::Response, Reason::ConnectionTerminated)
            if failure.unseen && (on.connect || on.stale) =>
        {
            true
        }
        (Stage::Response, Reason::ConnectionTerminated) => on.terminated && question.idempotent,
        (Stage::Response, Reason::ConnectionReadTimeout) => on.timeout && question.idempotent,
        (Stage::Response, Reason::ProxyProtocolError | Reason::ResponseHeaderSectionSize) => {
            on.invalid && question.idempotent
        }
        _ => false,
    };
    if allowed && question.left > 0 {
        Verdict::Retry
    } else {
        Verdict::Fail
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
        stage: Stage,
        reason: Reason,
        (stale, unseen): (bool, bool),
        idempotent: bool,
    ) -> Verdict {
        let failure = Failure {
            stage,
            reason,
            stale,
            refusal: None,
            unseen,
            own_limit: false,
            detail: String::new(),
        };
        may_retry(
            &failure,
            Question {
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
        use Stage::{Connect, Response};
        use Verdict::{Fail, Fresh, Retry};
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
        for (stage, reason, state, idempotent, other) in table {
            assert_eq!(
                verdict(stage, reason, state, true),
                idempotent,
                "{stage:?} {reason} {state:?} GET"
            );
            assert_eq!(
                verdict(stage, reason, state, false),
                other,
                "{stage:?} {reason} {state:?} POST"
            );
        }
    }

    #[test]
    fn without_tries_or_body_there_is_no_retry() {
        let failure = |stale| Failure {
            stage: Stage::Response,
            reason: Reason::ConnectionTerminated,
            stale,
            refusal: None,
            unseen: true,
            own_limit: false,
            detail: String::new(),
        };
        let ask = |left, replayable| Question {
            left,
            idempotent: true,
            replayable,
            free: true,
        };
        assert_eq!(
            may_retry(&failure(false), ask(0, true), &rules()),
            Verdict::Fail
        );
        assert_eq!(
            may_retry(&failure(false), ask(1, false), &rules()),
            Verdict::Fail
        );
        assert_eq!(
            may_retry(&failure(true), ask(0, true), &rules()),
            Verdict::Fresh
        );
        assert_eq!(
            may_retry(&failure(true), ask(0, false), &rules()),
            Verdict::Fail
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
        let ask = Question {
            left: 1,
            idempotent: true,
            replayable: true,
            free: true,
        };
        for (stage, reason, stale) in [
            (Stage::Connect, Reason::ConnectionRefused, false),
            (Stage::Response, Reason::ConnectionTerminated, true),
            (Stage::Response, Reason::ConnectionTerminated, false),
            (Stage::Response, Reason::ProxyProtocolError, false),
        ] {
            let failure = Failure {
                stage,
                reason,
                stale,
                refusal: None,
                unseen: true,
                own_limit: false,
                detail: String::new(),
            };
            assert_eq!(may_retry(&failure, ask, &rules), Verdict::Fail, "{reason}");
        }
        let slow = Failure {
            stage: Stage::Response,
            reason: Reason::ConnectionReadTimeout,
            stale: false,
            refusal: None,
            unseen: false,
            own_limit: false,
            detail: String::new(),
        };
        assert_eq!(may_retry(&slow, ask, &rules), Verdict::Retry);
    }
}
