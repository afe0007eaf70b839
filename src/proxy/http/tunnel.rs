//! The tunnel after a 101: both connections carry another protocol (RFC 9110 section 7.8).

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    attempt::{Attempt, ConnectionInUse, poll_upload},
    backend_side::BackendSide,
    buffers::ExchangeBuffers,
    client_side::ClientSide,
    connection::ClientConnection,
    exchange::{Exchange, ForwardSettings},
    forward::{self, SwitchExtra},
    outcome::AfterExchange,
    relay::{BodyRelay, BodyRelayError},
};
use crate::{
    base::clock,
    http::message::BodyFraming,
    http1::encode::TextHead,
    http2::block_head::BlockHead,
    net::{
        activity::ActivityTracker,
        copy::{self, RelayMeter, RelaySide as _},
    },
    proxy::{reasons, relay_stop::RelayStop},
    reason::Reason,
};

/// Time for the backend to read the bytes that the client sent behind its request to switch
/// protocols: at most a buffer.
const EARLY_DATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes the 101 on, and relays until one side ends or the tunnel is idle for too long.
pub(super) async fn tunnel(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    mut backend: BackendSide,
    upload: &mut BodyRelay,
) -> AfterExchange {
    let _in_use = ConnectionInUse::new(&backend, &attempt.lease.state);
    attempt.record_response(exchange);
    attempt.record_outcome(exchange.record.status, exchange.context.worker.now());
    let opened = async {
        let early_out = send_switch(exchange, attempt, &backend).await?;
        let early_in = send_early(exchange, attempt.settings, &mut backend, upload).await?;
        Ok((early_in, early_out))
    };
    let (early_in, early_out) = match opened.await {
        Ok(early) => early,
        Err(reason) => {
            exchange.record.reason = Some(reason);
            return AfterExchange::Reset;
        }
    };
    let counters = exchange.context.counters();
    let meter = RelayMeter {
        received: &counters.received,
        sent: &counters.sent,
    };
    let idle = attempt.settings.timeouts.tcp_idle;
    let relay_stop = RelayStop::default();
    let until_cut = exchange.context.worker.until_cut();
    let stop = relay_stop.wait(until_cut, attempt.lease);
    let client = &exchange.client.side;
    client.begin_tunnel();
    backend.begin_tunnel();
    let end = copy::relay_until(stop, client, &backend, Vec::new(), idle, meter).await;
    exchange.record.bytes_in = early_in + end.bytes_in;
    exchange.record.bytes_out = early_out + end.bytes_out;
    if let Err(cut) = end.end {
        exchange.record.reason = Some(relay_stop.reason(cut));
        return AfterExchange::Reset;
    }
    AfterExchange::Close
}

/// Sends the 101 to the client, with the first bytes of the backend that came behind its head;
/// gives their count.
async fn send_switch(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    backend: &BackendSide,
) -> Result<u64, Reason> {
    let context = exchange.context;
    let timeouts = &context.listener.config.timeouts;
    exchange.client.head_ready(timeouts, None).await?;
    let sticky = attempt.sticky_cookie(exchange);
    let ExchangeBuffers {
        request,
        request_id,
        response,
        client_out,
        ..
    } = &mut *exchange.buffers;
    // A backend with HTTP/2 does not see the key of the client.
    let mut keys = request.fields.values("sec-websocket-key", &request.bytes);
    let extra = SwitchExtra {
        request_id: (&context.snapshot.config.forwarded.request_id, request_id),
        unanswered_key: keys.next().filter(|_| backend.is_shared()),
        sticky,
    };
    client_out.clear();
    let mut sent = 0;
    match &exchange.client.side {
        ClientSide::H1(_) => {
            forward::switch_head(&mut TextHead::new(client_out), response, extra);
        }
        ClientSide::H2(side) => {
            let write = |block: &mut BlockHead<'_>| forward::switch_head(block, response, extra);
            let head = side.stream.send_head(false, write);
            sent = head.map_err(|_| Reason::ClientDisconnected)?;
        }
    }
    let from_backend = response.bytes.get(response.len..);
    debug_assert!(from_backend.is_some(), "the head is a part of its buffer");
    let from_backend = from_backend.unwrap_or_default();
    client_out.extend_from_slice(from_backend);
    let counters = context.counters();
    counters.sent.add((sent + client_out.len()) as u64);
    let early = from_backend.len() as u64;
    exchange
        .client
        .write_all(client_out, false, timeouts)
        .await?;
    Ok(early)
}

/// Sends the rest of the request to the backend, and the first bytes of the client that came behind
/// it; gives their count.
async fn send_early(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendSide,
    upload: &mut BodyRelay,
) -> Result<u64, Reason> {
    finish_upload(exchange, settings, backend, upload).await?;
    let head = exchange.head();
    let from_client = match head.framing {
        BodyFraming::None => head.bytes.get(head.len..),
        _ => Some(upload.unread()),
    };
    debug_assert!(from_client.is_some(), "the head is a part of its buffer");
    let from_client = from_client.unwrap_or_default();
    let written = write_early(backend, from_client);
    if !matches!(timeout(EARLY_DATA_TIMEOUT, written).await, Ok(Ok(()))) {
        return Err(Reason::BackendReset);
    }
    Ok(from_client.len() as u64)
}

/// Writes the first bytes of the client.
async fn write_early(backend: &BackendSide, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        poll_fn(|cx| backend.poll_write_ready(cx)).await?;
        match backend.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends the rest of a request that got its 101 before it was complete: its client sends that
/// before it uses the new protocol (RFC 9110 section 7.8).
async fn finish_upload(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendSide,
    upload: &mut BodyRelay,
) -> Result<(), Reason> {
    let mut activity = ActivityTracker::new(clock::now());
    while !upload.is_done() {
        let mut poll = |cx: &mut Context<'_>| {
            match poll_upload(exchange, backend, upload, &mut activity.last, cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(BodyRelayError::Write(_))) => {
                    return Poll::Ready(Err(Reason::BackendReset));
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(reasons::of_request_body(&error)));
                }
                Poll::Pending => {}
            }
            let ClientConnection { side, timer, .. } = &mut *exchange.client;
            let unacked = || [side.unacked(), backend.unacked()];
            let idle = settings.timeouts.tcp_idle;
            let passed = timer.poll_idle(cx, &mut activity, idle, None, unacked);
            passed.map(|_| Err(Reason::IdleTimeout))
        };
        if let Poll::Ready(Err(reason)) = poll_fn(|cx| Poll::Ready(poll(cx))).await {
            return Err(reason);
        }
        if !upload.is_done() && exchange.client.is_disconnected_when_woken().await {
            return Err(Reason::ClientDisconnected);
        }
    }
    Ok(())
}
