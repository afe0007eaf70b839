//! HTTP for the two small servers: a bounded number of connections with deadlines, and answers in the envelope of every error.
//!
//! hyper speaks the protocol. Knows nothing of what is served.

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
    Request, Response, StatusCode,
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

/// How long a client may take for a request head, and how long a connection may stay idle.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to read an answer.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// After this a connection is asked to end: nobody holds one of the few places for ever.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(5);

pub(super) type AdminResponse = Response<Full<Bytes>>;

/// The connections of one server. A new one is always let in: where all places are taken, the connection that has been idle
/// longest is closed, and where all are being answered, the oldest. An answer that its client reads takes no time, so probes
/// find a place however many clients do not read.
pub(super) struct ConnectionSlots {
    most: usize,
    /// The oldest first.
    open: VecDeque<ConnectionSlot>,
    failures: u32,
}

struct ConnectionSlot {
    task: AbortHandle,
    progress: Arc<ConnectionProgress>,
}

/// Where a connection stands.
#[derive(Debug, Default)]
struct ConnectionProgress {
    /// From the head of a request to the last byte of its answer.
    is_busy: AtomicBool,
    /// Since when an answer has been written.
    writing: Mutex<Option<Instant>>,
}

impl ConnectionProgress {
    fn writing(&self) -> Option<Instant> {
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_writing(&self, since: Option<Instant>) {
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn finish(&self) {
        if self.writing().is_some() {
            self.set_writing(None);
            self.is_busy.store(false, Relaxed);
        }
    }
}

impl ConnectionSlots {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            open: VecDeque::new(),
            failures: 0,
        }
    }

    /// The stream of what `accept` gave; `None` after an error, and then not before a pause.
    pub(super) async fn accepted<S, A>(&mut self, accepted: io::Result<(S, A)>) -> Option<S> {
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

    /// Serves a connection on a task of its own.
    pub(super) async fn serve<S, F>(
        &mut self,
        stream: S,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        self.open.retain(|place| !place.task.is_finished());
        if self.open.len() >= self.most {
            let is_idle = |place: &ConnectionSlot| !place.progress.is_busy.load(Relaxed);
            let least = self.open.iter().position(is_idle).unwrap_or(0);
            if let Some(place) = self.open.remove(least) {
                place.task.abort();
            }
        }
        let progress = Arc::new(ConnectionProgress::default());
        let task =
            tokio::spawn(serve_connection(stream, Arc::clone(&progress), answer)).abort_handle();
        self.open.push_back(ConnectionSlot { task, progress });
        // It has its turn before others can take its place.
        yield_now().await;
    }
}

/// Serves one connection until it ends.
async fn serve_connection<S, F>(
    stream: S,
    progress: Arc<ConnectionProgress>,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = AdminResponse>,
{
    let service = service_fn(|request| {
        progress.is_busy.store(true, Relaxed);
        let answer = answer(request);
        async {
            let answer = answer.await;
            progress.set_writing(Some(clock::now()));
            Ok::<_, Infallible>(answer)
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
        .max_buf_size(32 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
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

/// A stream whose writes fail when an answer takes longer than [`RESPONSE_TIMEOUT`].
struct WriteTimeoutStream<S> {
    stream: S,
    progress: Arc<ConnectionProgress>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeoutStream<S> {
    /// Ready when the client has had its time for the answer.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
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

    fn or_late<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending => self.poll_late(context).map(Err),
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
        self.or_late(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.or_late(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has written all that it has.
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

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> AdminResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A line of plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    answer(status, "text/plain; charset=utf-8", body)
}

/// The page Prometheus reads.
pub(super) fn exposition(body: Bytes) -> AdminResponse {
    answer(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        body,
    )
}

/// A JSON document.
pub(super) fn document(status: StatusCode, document: &serde_json::Value) -> AdminResponse {
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
pub(super) fn error(status: StatusCode, details: &str) -> AdminResponse {
    document(status, &envelope(status, details))
}

/// 405 with the methods that are allowed.
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

    /// A connection that is answered with `size` bytes.
    async fn connect(places: &mut ConnectionSlots, size: usize) -> tokio::io::DuplexStream {
        let (client, server) = duplex(1 << 10);
        let page = Bytes::from(vec![b'x'; size]);
        let answer = move |_| {
            let page = page.clone();
            async move { exposition(page) }
        };
        places.serve(server, answer).await;
        client
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_or_reads_by_drops_is_cut_and_a_slow_one_is_not() {
        let mut places = ConnectionSlots::new(8);
        let mut silent = connect(&mut places, 1 << 20).await;
        silent.write_all(GET_ROOT).await.unwrap();
        let mut dripping = connect(&mut places, 1 << 20).await;
        dripping.write_all(GET_ROOT).await.unwrap();
        let mut slow = connect(&mut places, 4 << 10).await;
        slow.write_all(GET_ROOT).await.unwrap();
        tokio::time::sleep(RESPONSE_TIMEOUT * 9 / 10).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"xxx") || answer.len() < 4 << 10 {
            assert_ne!(slow.read_buf(&mut answer).await.unwrap(), 0);
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
    async fn where_all_places_are_taken_the_longest_idle_gives_way_then_the_oldest_answered() {
        let mut places = ConnectionSlots::new(3);
        let mut reading = Vec::new();
        for _ in 0..2 {
            let mut client = connect(&mut places, 1 << 20).await;
            client.write_all(GET_ROOT).await.unwrap();
            yield_now().await;
            reading.push(client);
        }
        let mut idle = connect(&mut places, 1).await;
        for _ in 0..20 {
            let mut probe = connect(&mut places, 1).await;
            probe.write_all(GET_ROOT).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"x") || answer.len() < 20 {
                assert_ne!(probe.read_buf(&mut answer).await.unwrap(), 0);
            }
        }
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "it gave way");
        let mut third = connect(&mut places, 1 << 20).await;
        third.write_all(GET_ROOT).await.unwrap();
        yield_now().await;
        let _newest = connect(&mut places, 1).await;
        let mut rest = Vec::new();
        reading[0].read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() <= 1 << 10, "the oldest was cut");
        reading[1].read_exact(&mut [0; 4 << 10]).await.unwrap();
    }
}
