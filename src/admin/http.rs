//! HTTP for the two small servers: a bounded number of connections with timeouts, and responses
//! with one error envelope.
//!
//! hyper implements the protocol. This file does not know the paths and documents. The servers run
//! on the control thread, so hostile clients must cost it little: memory is bounded by the number
//! of connections, and each phase of a connection has a timeout. Read next: `api.rs`, `metrics.rs`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::{AbortHandle, yield_now},
    time::{Sleep, sleep_until},
};

use crate::base::{backoff, clock};

/// Time for a client to send a request head; also the idle timeout of a connection.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a client to read a response.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Age at which a connection is closed gracefully, so that no client keeps a slot for ever.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(5);

/// Maximum size of hyper's read buffer for each connection, and so of a request head.
const MAX_BUFFER_BYTES: usize = 32 << 10;

/// Delay after a failed accept; doubled for each further failure.
const FIRST_ACCEPT_DELAY: Duration = Duration::from_millis(5);
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

pub(super) type AdminResponse = Response<Full<Bytes>>;

/// Open connections of one server.
///
/// A new connection is always accepted. If all slots are in use, it replaces the connection that
/// has been idle longest, or the oldest one if none is idle. A response to a client that reads it
/// takes almost no time. So health probes always get a slot, even if many clients do not read.
pub(super) struct ConnectionSlots {
    max: usize,
    /// In the order of their start, the oldest first.
    open: VecDeque<ConnectionSlot>,
    /// Accept errors in a row.
    failures: u32,
}

struct ConnectionSlot {
    task: AbortHandle,
    progress: Arc<ConnectionProgress>,
}

/// Progress of a connection, written by its task and read by the accept loop.
#[derive(Debug, Default)]
struct ConnectionProgress {
    /// True from the head of a request to the last byte of its response.
    is_busy: AtomicBool,
    /// Start of the response that is being written.
    writing: Mutex<Option<Instant>>,
}

impl ConnectionProgress {
    fn writing(&self) -> Option<Instant> {
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_writing(&self, since: Option<Instant>) {
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Ends the current response, if one is being written.
    fn finish(&self) {
        if self.writing().is_some() {
            self.set_writing(None);
            self.is_busy.store(false, Relaxed);
        }
    }
}

impl ConnectionSlots {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            open: VecDeque::new(),
            failures: 0,
        }
    }

    /// Returns the accepted stream, or `None` after an error and a delay.
    ///
    /// Without the delay, an accept loop that has no descriptors left would use a full core.
    pub(super) async fn accepted<S, A>(&mut self, accepted: io::Result<(S, A)>) -> Option<S> {
        match accepted {
            Ok((stream, _)) => {
                self.failures = 0;
                Some(stream)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the admin or metrics server");
                let delay = backoff::doubled(FIRST_ACCEPT_DELAY, self.failures, MAX_ACCEPT_DELAY);
                self.failures = self.failures.saturating_add(1);
                tokio::time::sleep(delay).await;
                None
            }
        }
    }

    /// Starts a task that serves the connection with `respond`.
    pub(super) async fn serve<S, F>(
        &mut self,
        stream: S,
        respond: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        self.open.retain(|slot| !slot.task.is_finished());
        if self.open.len() >= self.max {
            let is_idle = |slot: &ConnectionSlot| !slot.progress.is_busy.load(Relaxed);
            let replaced = self.open.iter().position(is_idle).unwrap_or(0);
            if let Some(slot) = self.open.remove(replaced) {
                slot.task.abort();
            }
        }
        let progress = Arc::new(ConnectionProgress::default());
        let task =
            tokio::spawn(serve_connection(stream, Arc::clone(&progress), respond)).abort_handle();
        self.open.push_back(ConnectionSlot { task, progress });
        // The new task runs once before the next accept, which could replace this connection.
        yield_now().await;
    }
}

/// Serves one connection until it ends.
async fn serve_connection<S, F>(
    stream: S,
    progress: Arc<ConnectionProgress>,
    respond: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = AdminResponse>,
{
    let service = service_fn(|request| {
        progress.is_busy.store(true, Relaxed);
        let response = respond(request);
        async {
            let response = response.await;
            progress.set_writing(Some(clock::now()));
            Ok::<_, Infallible>(response)
        }
    });
    let stream = WriteTimeoutStream {
        stream,
        progress: Arc::clone(&progress),
        timer: None,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Normal life of the connection, then a graceful end within the time for one response.
    let ended = tokio::time::timeout(MAX_CONNECTION_AGE, connection.as_mut()).await;
    let ended = if let Ok(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        tokio::time::timeout(RESPONSE_TIMEOUT, connection)
            .await
            .unwrap_or(Ok(()))
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin or metrics server failed");
    }
}

/// Stream whose writes fail when a response takes longer than [`RESPONSE_TIMEOUT`].
///
/// hyper has a timeout for request heads only. Without this one, a client that does not read would
/// hold its page, which can have many megabytes.
struct WriteTimeoutStream<S> {
    stream: S,
    progress: Arc<ConnectionProgress>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeoutStream<S> {
    /// Ready when the time for the current response is over.
    fn poll_timeout(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(since) = self.progress.writing() else {
            return Poll::Pending;
        };
        let end = (since + RESPONSE_TIMEOUT).into();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        ready!(timer.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// Fails a write that is pending when the time is over.
    fn or_timeout<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending => self.poll_timeout(context).map(Err),
            written @ Poll::Ready(_) => written,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.or_timeout(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.or_timeout(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// A completed flush ends the response: hyper flushes after it has written everything.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.progress.finish();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> AdminResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Response with plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    respond(status, "text/plain; charset=utf-8", body)
}

/// Response with metrics in the text format of Prometheus.
pub(super) fn exposition(body: Bytes) -> AdminResponse {
    respond(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        body,
    )
}

/// Response with a JSON document.
pub(super) fn document(status: StatusCode, document: &serde_json::Value) -> AdminResponse {
    respond(status, "application/json", format!("{document}\n"))
}

/// Envelope of all errors: `{"error":{"code":…,"message":…,"details":…}}`.
pub(super) fn envelope(status: StatusCode, details: &str) -> serde_json::Value {
    debug_assert!(status.canonical_reason().is_some(), "{status}");
    json!({"error": {
        "code": status.as_u16(),
        "message": status.canonical_reason().unwrap_or_default(),
        "details": details,
    }})
}

/// Response with an error in its envelope.
pub(super) fn error(status: StatusCode, details: &str) -> AdminResponse {
    document(status, &envelope(status, details))
}

/// Refusal of a request that a web page has made through the browser of its reader.
pub(super) fn refuse_web_page(headers: &HeaderMap) -> Option<AdminResponse> {
    let refusal = || {
        error(
            StatusCode::FORBIDDEN,
            "Requests from a web page are refused.",
        )
    };
    headers.contains_key(header::ORIGIN).then(refusal)
}

/// Response 503 of a daemon whose control thread takes no requests any more.
pub(super) fn shutting_down() -> AdminResponse {
    error(
        StatusCode::SERVICE_UNAVAILABLE,
        "The daemon is shutting down.",
    )
}

/// Response 405 with the allowed methods.
pub(super) fn method_not_allowed(allow: &'static str) -> AdminResponse {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("Use {allow} for this path."),
    );
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const GET_ROOT: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// Opens a connection whose requests get `size` bytes.
    async fn connect(slots: &mut ConnectionSlots, size: usize) -> tokio::io::DuplexStream {
        let (client, server) = duplex(1 << 10);
        let page = Bytes::from(vec![b'x'; size]);
        let service = move |_| {
            let page = page.clone();
            async move { exposition(page) }
        };
        slots.serve(server, service).await;
        client
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_or_reads_by_drops_is_cut_and_a_slow_one_is_not() {
        let mut slots = ConnectionSlots::new(8);
        let mut silent = connect(&mut slots, 1 << 20).await;
        silent.write_all(GET_ROOT).await.unwrap();
        let mut dripping = connect(&mut slots, 1 << 20).await;
        dripping.write_all(GET_ROOT).await.unwrap();
        let mut slow = connect(&mut slots, 4 << 10).await;
        slow.write_all(GET_ROOT).await.unwrap();
        tokio::time::sleep(RESPONSE_TIMEOUT * 9 / 10).await;
        let mut response = Vec::new();
        while !response.ends_with(b"xxx") || response.len() < 4 << 10 {
            assert_ne!(slow.read_buf(&mut response).await.unwrap(), 0);
        }
        for _ in 0..10 {
            dripping.read_u8().await.unwrap();
            tokio::time::sleep(RESPONSE_TIMEOUT / 20).await;
        }
        let mut rest = Vec::new();
        dripping.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 1 << 10, "{}", rest.len());
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 1 << 10, "{}", rest.len());
    }

    #[tokio::test(start_paused = true)]
    async fn above_the_limit_the_longest_idle_is_replaced_then_the_oldest() {
        let mut slots = ConnectionSlots::new(3);
        let mut reading = Vec::new();
        for _ in 0..2 {
            let mut client = connect(&mut slots, 1 << 20).await;
            client.write_all(GET_ROOT).await.unwrap();
            yield_now().await;
            reading.push(client);
        }
        let mut idle = connect(&mut slots, 1).await;
        for _ in 0..20 {
            let mut probe = connect(&mut slots, 1).await;
            probe.write_all(GET_ROOT).await.unwrap();
            let mut response = Vec::new();
            while !response.ends_with(b"x") || response.len() < 20 {
                assert_ne!(probe.read_buf(&mut response).await.unwrap(), 0);
            }
        }
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "it was replaced");
        let mut third = connect(&mut slots, 1 << 20).await;
        third.write_all(GET_ROOT).await.unwrap();
        yield_now().await;
        let _newest = connect(&mut slots, 1).await;
        let mut rest = Vec::new();
        reading[0].read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 1 << 10, "the oldest was cut");
        reading[1].read_exact(&mut [0; 4 << 10]).await.unwrap();
    }
}
