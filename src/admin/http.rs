//! HTTP for the two small servers: connections with deadlines and a cap, and answers in the envelope of every error.
//!
//! hyper speaks the protocol. Knows nothing of what is served.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::base::backoff;

/// Connections at a time to one server: more wait in the kernel's queue.
pub(super) const CONNECTIONS: usize = 64;

/// How long a client may take for a request head, and how long a connection may stay idle.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// After this a connection is asked to end: nobody holds one of the few places for ever.
const LIFETIME: Duration = Duration::from_mins(5);

/// How long the last answer of such a connection may take.
const LAST_ANSWER: Duration = Duration::from_secs(10);

pub(super) type Answer = Response<Full<Bytes>>;

/// Lets in [`CONNECTIONS`] at a time and backs off when accepting fails, as it does without descriptors.
pub(super) struct Gate {
    places: Arc<Semaphore>,
    failures: u32,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            failures: 0,
        }
    }

    /// Waits for a free place, which lasts until the permit is dropped.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Only a closed semaphore gives no permit, and nobody closes this one.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// What `accept` gave; `None` after an error, and then not before a pause.
    pub(super) async fn admit<S, A>(&mut self, accepted: io::Result<(S, A)>) -> Option<S> {
        match accepted {
            Ok((stream, _)) => {
                self.failures = 0;
                Some(stream)
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin or metrics server was not accepted");
                let first = Duration::from_millis(5);
                let wait = backoff::doubled(first, self.failures, Duration::from_secs(1));
                self.failures = self.failures.saturating_add(1);
                tokio::time::sleep(wait).await;
                None
            }
        }
    }
}

/// Serves one connection until it ends.
pub(super) async fn converse<S, F>(stream: S, answer: impl Fn(Request<Incoming>) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(32 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::time::timeout(LIFETIME, connection.as_mut()).await;
    let ended = if let Ok(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        tokio::time::timeout(LAST_ANSWER, connection)
            .await
            .unwrap_or(Ok(()))
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin or metrics server failed");
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A line of plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

/// The page Prometheus reads.
pub(super) fn exposition(body: String) -> Answer {
    answer(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        body,
    )
}

/// A JSON document.
pub(super) fn document(status: StatusCode, document: &serde_json::Value) -> Answer {
    answer(status, "application/json", format!("{document}\n"))
}

/// The envelope of all errors, `{"error":{"code":…,"message":…,"details":…}}`.
pub(super) fn envelope(status: StatusCode, details: &str) -> serde_json::Value {
    json!({"error": {
        "code": status.as_u16(),
        "message": status.canonical_reason().unwrap_or_default(),
        "details": details,
    }})
}

/// An error in its envelope.
pub(super) fn error(status: StatusCode, details: &str) -> Answer {
    document(status, &envelope(status, details))
}

/// 405 with the methods that are allowed.
pub(super) fn method_not_allowed(allow: &'static str) -> Answer {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("Use {allow} for this path."),
    );
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}
