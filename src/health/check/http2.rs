//! One request over HTTP/2 on a connection of its own, which is driven while the answer is waited for and then ended in order.
//!
//! What a backend can make us hold is bounded by [`Bounded`] below the frames, and by the windows above them.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, client};
use hyper::{Request, Response, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout_at,
};

use super::{
    Limit,
    http::{BODY_SEARCHED, Probe, cannot_ask},
};
use crate::net::{stream::Stream, tls::NOT_H2};

/// Largest head or trailers, counted as RFC 9113 section 6.5.2 does.
const MOST_FIELDS: u32 = 16 << 10;
/// What a backend may send in all. A head, the body that is searched and what is around them need half of it.
const MOST_BYTES: usize = 4 * BODY_SEARCHED;
/// 1xx before the response, as many as clients get of an exchange.
const MOST_INTERIM: usize = 16;

/// An http check on `stream`.
pub(super) async fn http(stream: Stream, probe: &Probe<'_>, limit: Limit) -> Result<(), String> {
    let request = probe
        .request()
        .version(Version::HTTP_2)
        .uri(target(&stream, &probe.authority, probe.path))
        .body(())
        .map_err(|error| cannot_ask(&error))?;
    let judge = async |response: Response<RecvStream>| {
        let status = response.status();
        let mut body = response.into_body();
        probe.judge(status, async || next(&mut body).await).await
    };
    ask(stream, request, None, judge, limit).await
}

/// The URI of a request on `stream`, which becomes `:scheme`, `:authority` and `:path`.
pub(super) fn target(stream: &Stream, authority: &str, path: &str) -> String {
    let scheme = stream.tls().map_or("http", |_| "https");
    format!("{scheme}://{authority}{path}")
}

/// Sends `request` with `body`, and lets `judge` read the response.
pub(super) async fn ask(
    stream: Stream,
    request: Request<()>,
    body: Option<Bytes>,
    judge: impl AsyncFnOnce(Response<RecvStream>) -> Result<(), String>,
    limit: Limit,
) -> Result<(), String> {
    if stream.agreed().is_some_and(|agreed| !agreed.h2) {
        return Err(NOT_H2.to_owned());
    }
    let mut connection = None;
    let verdict = limit.keep(async {
        let (sender, driver) = builder()
            .handshake(Bounded::new(stream))
            .await
            .map_err(|error| describe(&error))?;
        let driver = connection.insert(driver);
        let exchange = async move {
            judge(send(sender, request, body).await?).await
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            result = &mut exchange => result,
            // What came before the end may be the whole answer.
            ended = driver => tokio::select! {
                biased;
                result = &mut exchange => result,
                () = std::future::ready(()) => Err(ended.map_or_else(|error| describe(&error), |()| closed())),
            },
        }
    });
    let verdict = verdict.await;
    if let Some(connection) = connection {
        // Nothing uses it any more, so that it says GOAWAY and ends. The verdict stands whether the backend takes that or not.
        let _ = timeout_at(limit.deadline.into(), connection).await;
    }
    verdict
}

fn builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .max_concurrent_streams(0)
        .max_header_list_size(MOST_FIELDS)
        .initial_window_size(BODY_SEARCHED as u32)
        .initial_connection_window_size(BODY_SEARCHED as u32);
    builder
}

/// Gives the head of the final response.
async fn send(
    sender: client::SendRequest<Bytes>,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<Response<RecvStream>, String> {
    let sent = async {
        let mut sender = sender.ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_none())?;
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        Ok(response)
    };
    let mut response = sent.await.map_err(|error| describe(&error))?;
    let mut interim = 0;
    poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {
            interim += 1;
            if interim > MOST_INTERIM {
                return Poll::Ready(Err("too many 1xx responses".to_owned()));
            }
        }
        let head = ready!(Pin::new(&mut response).poll(cx));
        Poll::Ready(head.map_err(|error| describe(&error)))
    })
    .await
}

/// The next part of the body.
pub(super) async fn next(body: &mut RecvStream) -> Option<Result<Bytes, String>> {
    let data = body.data().await?.and_then(|data| {
        body.flow_control().release_capacity(data.len())?;
        Ok(data)
    });
    Some(data.map_err(|error| describe(&error)))
}

fn closed() -> String {
    "connection closed before the whole answer".to_owned()
}

/// A failure of the connection or of the stream in words.
pub(super) fn describe(error: &h2::Error) -> String {
    match (error.reason(), error.get_io()) {
        (Some(reason), _) if error.is_remote() && error.is_go_away() => {
            format!("the backend ended the connection (GOAWAY {reason:?})")
        }
        (Some(reason), _) if error.is_remote() => {
            format!("the backend refused the request (RST_STREAM {reason:?})")
        }
        (Some(reason), _) => format!("answer is not valid HTTP/2 ({reason:?})"),
        (None, Some(cause)) if cause.kind() == io::ErrorKind::InvalidData => cause.to_string(),
        (None, Some(_)) => closed(),
        (None, None) => error.to_string(),
    }
}

/// A stream that gives up on a backend that sends too much, or another protocol.
///
/// The h2 crate reads as long as there is something, and keeps what it has read: 1xx without number, and frames that cost more
/// than their bytes. So there is one read a turn, and whoever waits for the answer has its turn in between.
struct Bounded {
    stream: Stream,
    /// Bytes that were read.
    read: usize,
    /// The next read is for the next turn.
    pause: bool,
}

impl Bounded {
    const fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: 0,
            pause: false,
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        let invalid = |text| Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        if this.read == 0 && new.starts_with(b"HTTP/") {
            return invalid("the backend speaks HTTP/1, not HTTP/2");
        }
        this.read += new.len();
        this.pause = true;
        if this.read > MOST_BYTES {
            return invalid("answer is too long");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
