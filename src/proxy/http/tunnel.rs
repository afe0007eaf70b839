//! The tunnel after a 101: both connections carry another protocol (RFC 9110 section 7.8).

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    attempt::{Attempt, ConnectionInUse, poll_upload},
    buffers::ExchangeBuffers,
    connection::ClientConnection,
    exchange::{Exchange, ForwardSettings},
    forward::{self, SwitchExtra},
    outcome::AfterExchange,
    pump::{Pump, PumpError},
};
use crate::{
    base::clock,
    http::message::BodyFraming,
    http1::encode::TextHead,
    net::{
        activity::ActivityTracker,
        copy::{self, RelayMeter},
    },
    proxy::{idle::BackendConnection, reasons, relay_stop::RelayStop},
    reason::Reason,
};

/// Time for the backend to read the bytes that the client sent behind its request to switch
/// protocols: at most a buffer.
const EARLY_DATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes the 101 on, and relays until one side ends or the tunnel is idle for too long.
pub(super) async fn tunnel(
    exchange: &mut Exchange<'_>,
    attempt: Attempt<'_>,
    mut backend: BackendConnection,
    upload: &mut Pump,
) -> AfterExchange {
    let _in_use = ConnectionInUse::new(&backend, &attempt.lease.state);
    attempt.record_response(exchange);
    attempt.pool.record_success(attempt.lease);
    let opened = open(exchange, attempt.settings, &mut backend, upload).await;
    let (early_in, early_out) = match opened {
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
    let client = &exchange.client.stream;
    let end = copy::relay_until(stop, client, &backend.stream, Vec::new(), idle, meter).await;
    exchange.record.bytes_in = early_in + end.bytes_in;
    exchange.record.bytes_out = early_out + end.bytes_out;
    if let Err(cut) = end.end {
        exchange.record.reason = Some(relay_stop.reason(cut));
        return AfterExchange::Reset;
    }
    AfterExchange::Close
}

/// Writes the bytes that were read with the two heads, which belong to the new protocol; gives
/// their counts from the client and from the backend.
async fn open(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
) -> Result<(u64, u64), Reason> {
    // To the client: the 101 and the first bytes of the backend.
    let ExchangeBuffers {
        request,
        request_id,
        response,
        client_out,
        ..
    } = &mut *exchange.buffers;
    let context = exchange.context;
    let id_name = &context.snapshot.config.forwarded.request_id;
    // A backend with HTTP/2 does not see the key of the client.
    let has_key = backend.stream.h2_response().is_none();
    let key = (request.fields)
        .values("sec-websocket-key", &request.bytes)
        .next();
    let extra = SwitchExtra {
        request_id: (id_name, request_id),
        unanswered_key: key.filter(|_| !has_key),
    };
    client_out.clear();
    forward::switch_head(&mut TextHead::new(client_out), response, extra);
    let from_backend = response.bytes.get(response.len..);
    debug_assert!(from_backend.is_some(), "the head is a part of its buffer");
    let from_backend = from_backend.unwrap_or_default();
    client_out.extend_from_slice(from_backend);
    let early_out = from_backend.len() as u64;
    context.counters().sent.add(client_out.len() as u64);
    let timeouts = &context.listener.config.timeouts;
    exchange.client.write_all(client_out, timeouts).await?;
    // To the backend: the rest of the request, and the first bytes of the client.
    finish_upload(exchange, settings, backend, upload).await?;
    let head = exchange.head();
    let from_client = match head.framing {
        BodyFraming::None => head.bytes.get(head.len..),
        _ => Some(upload.unread()),
    };
    debug_assert!(from_client.is_some(), "the head is a part of its buffer");
    let from_client = from_client.unwrap_or_default();
    let written = AsyncWriteExt::write_all(&mut backend.stream, from_client);
    if !matches!(timeout(EARLY_DATA_TIMEOUT, written).await, Ok(Ok(()))) {
        return Err(Reason::BackendReset);
    }
    Ok((from_client.len() as u64, early_out))
}

/// Sends the rest of a request that got its 101 before it was complete: its client sends that
/// before it uses the new protocol (RFC 9110 section 7.8).
async fn finish_upload(
    exchange: &mut Exchange<'_>,
    settings: &ForwardSettings<'_>,
    backend: &mut BackendConnection,
    upload: &mut Pump,
) -> Result<(), Reason> {
    let mut activity = ActivityTracker::new(clock::now());
    while !upload.is_done() {
        let mut poll = |cx: &mut Context<'_>| {
            match poll_upload(exchange, backend, upload, &mut activity.last, cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(PumpError::Write(_))) => {
                    return Poll::Ready(Err(Reason::BackendReset));
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(reasons::of_request_body(&error)));
                }
                Poll::Pending => {}
            }
            let ClientConnection { stream, timer, .. } = &mut *exchange.client;
            let unacked = || [stream.unacked(), backend.stream.unacked()];
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
