//! Runs a client connection: wait for a request, run the exchange, wait again.
//!
//! A connection that waits holds no buffer and no exchange. HTTP/2 connections go on in `http2.rs`.

use std::rc::Rc;

use tokio::task::yield_now;

use super::{
    buffers::ExchangeBuffers,
    connection::ClientConnection,
    http2,
    linger::{LINGER_AFTER_RESPONSE, linger, write_and_close},
    outcome::AfterExchange,
    reply, run,
};
use crate::{net::copy::RelaySide as _, proxy::worker::Worker, reason::Reason, snapshot::Snapshot};

/// Pipelined requests after which other connections get their turn.
const YIELD_EVERY: u32 = 8;

/// Serves `client` until its connection ends.
pub async fn serve(worker: Rc<Worker>, mut client: ClientConnection) {
    if client.side.negotiated_tls().is_some_and(|tls| tls.h2) {
        return Box::pin(http2::serve(worker, client, Vec::new())).await;
    }
    // The buffers of an exchange behind which another request has been read already.
    let mut pipelined: Option<Box<ExchangeBuffers>> = None;
    loop {
        if pipelined.is_none() {
            let generation = worker.generation();
            let Some((_, listener)) = client.listener_in(&generation) else {
                return;
            };
            let keepalive = listener.config.timeouts.keepalive;
            drop(generation);
            let deadline = keepalive.map(|keepalive| worker.now() + keepalive);
            if !client.wait_for_request(deadline).await {
                // Dropping the socket is enough in the clear; TLS needs its close alert, or the
                // client sees a truncation.
                if client.side.tls().is_some() {
                    client.finish();
                }
                return;
            }
        }
        let mut buffers = pipelined.take().unwrap_or_else(|| worker.take_buffers());
        let mut next = Box::pin(run::run(&worker, &mut client, &mut buffers)).await;
        let has_pipelined = !buffers.request.bytes.is_empty();
        if next == AfterExchange::KeepAlive && has_pipelined {
            pipelined = Some(buffers);
            if client.pipelined_requests.is_multiple_of(YIELD_EVERY) {
                yield_now().await;
            }
            continue;
        }
        if next == AfterExchange::Http2 {
            let read = buffers.request.bytes.clone();
            worker.give_back_buffers(buffers);
            return Box::pin(http2::serve(worker, client, read)).await;
        }
        worker.give_back_buffers(buffers);
        // Unread input turns a close into a reset, which can destroy a response on its way.
        if next == AfterExchange::Close && (has_pipelined || !client.side.is_idle_and_open()) {
            next = AfterExchange::Linger;
        }
        match next {
            AfterExchange::KeepAlive | AfterExchange::Http2 => {}
            AfterExchange::Close => return client.finish(),
            AfterExchange::Reset => return client.side.set_reset_on_close(),
            AfterExchange::Linger => {
                return Box::pin(linger(&worker.lingering, client, LINGER_AFTER_RESPONSE)).await;
            }
        }
    }
}

/// The status of [`refuse`] for a connection over a limit.
pub(in crate::proxy) fn overload_status(snapshot: &Snapshot) -> u16 {
    reply::status_of(Reason::Overload, &snapshot.config.errors)
}

/// Responds to a connection that is not served with an error, such as 503 when it is over a
/// limit, and closes it. As cheap as a response can be: it is sent to floods.
pub async fn refuse(worker: Rc<Worker>, client: ClientConnection, reason: Reason) {
    let generation = worker.generation();
    let mut out = Vec::with_capacity(512);
    reply::encode_refusal(&worker, &generation, reason, &mut out);
    drop(generation);
    write_and_close(&worker, client, &out).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a connection's task: the cost of an idle one beside its stream and the runtime.
    fn size_of_future<F: Future>(_: fn(Rc<Worker>, ClientConnection) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_future(serve);
        assert!(size <= 512, "{size} bytes");
    }
}
