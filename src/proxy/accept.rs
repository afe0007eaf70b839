//! Takes connections from one listening socket, checks who may connect, reads the PROXY header
//! where the listener wants one, and starts the listener's service in a task of its own.
//!
//! A new protocol is a variant of [`ListenerService`] with its arm in `serve`. Must not know what
//! a service does. Limits are in `permit.rs`.
//!
//! An accept error never ends the loop and never makes it spin: it waits, closes idle connections,
//! and goes on.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{select, sync::watch, task::spawn_local, time::sleep};

use super::{
    accepted::AcceptedConnection,
    http,
    permit::{ConnectionPermit, acquire_client_permit, acquire_permit},
    proxy_header,
    secure::secure,
    session::{session, sni_session},
    worker::Worker,
};
use crate::{
    base::{backoff, clock, socket_key::SocketKey},
    config::model::{AcceptProxyConfig, ProxyVersion},
    net::{limits, listen::Acceptor, stream::Stream},
    reason::Reason,
    snapshot::{Listener, ListenerService, Snapshot},
    telemetry::record::{AccessRecord, RequestText},
};

/// First wait after an accept error; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// Longest wait: a descriptor that becomes free is used within this time.
const MAX_BACKOFF: Duration = Duration::from_millis(80);
/// Shortest time between two log lines about connections that wait for a descriptor.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Idle connections closed in one round before other tasks get their turn.
const MAX_SHED_PER_ROUND: usize = 16;

/// Accepts until `stop` says so; then takes what is still queued, so that no connection is lost,
/// and ends.
pub async fn run(
    worker: Rc<Worker>,
    acceptor: Acceptor,
    socket: Rc<SocketKey>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    let mut last_report: Option<Instant> = None;
    let is_stopped = stop.clone();
    // The sender is gone only when the worker ends.
    let mut stopped = pin!(stop.wait_for(|stop| *stop));
    // Looked at each time: a queue that never becomes empty must not keep us from stopping.
    while !is_stopped.has_changed().unwrap_or(true) {
        let accepted = select! {
            biased;
            accepted = acceptor.accept() => accepted,
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                // Descriptors above the limit are a reserve for checks, admin and metrics.
                if stream.fd().is_some_and(limits::is_reserved) {
                    let now = clock::now();
                    let is_known = last_report.is_some_and(|at| now - at < REPORT_INTERVAL);
                    if !is_known {
                        last_report = Some(now);
                    }
                    wait_for_descriptor(&worker, &socket, &stream, &is_stopped, is_known.into())
                        .await;
                }
                on_accept(&worker, stream, peer, &socket);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                shed_idle(&worker, &socket, failures, &error);
                sleep(backoff::doubled(FIRST_BACKOFF, failures, MAX_BACKOFF)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
    match acceptor.drain_queue() {
        Ok(queued) => {
            for (stream, peer) in queued {
                on_accept(&worker, stream, peer, &socket);
            }
        }
        Err(error) => {
            tracing::warn!(target: "listener", bind = %socket, %error, "queued connections are lost");
        }
    }
}

/// Holds a connection that took a descriptor of the reserve until there is another one outside of
/// it, or until the end. Logged where `first` is 0.
async fn wait_for_descriptor(
    worker: &Worker,
    socket: &SocketKey,
    stream: &Stream,
    stop: &watch::Receiver<bool>,
    first: u32,
) {
    let error = io::Error::from_raw_os_error(libc::EMFILE);
    for failures in first.. {
        shed_idle(worker, socket, failures, &error);
        sleep(backoff::doubled(FIRST_BACKOFF, failures, MAX_BACKOFF)).await;
        if *stop.borrow() || stream.fd().is_some_and(limits::can_open_descriptor) {
            return;
        }
    }
}

/// True for errors of a connection that was gone before it was accepted: accept(2) reports them on
/// the listening socket, and the next connection is not concerned. EPERM is a firewall's refusal.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

/// Closes idle connections where no descriptor or memory is left. Those to backends go first: no
/// client notices. Logged when the shortage begins, not for every attempt.
fn shed_idle(worker: &Worker, socket: &SocketKey, failures: u32, error: &io::Error) {
    if failures == 0 {
        tracing::warn!(target: "listener", bind = %socket, %error, "accept failed, closing idle connections");
    }
    let mut closed = worker.idle.borrow_mut().shed(MAX_SHED_PER_ROUND);
    closed += worker
        .h2_connections
        .borrow_mut()
        .shed(MAX_SHED_PER_ROUND - closed);
    for _ in closed..MAX_SHED_PER_ROUND {
        if !worker.connections.shed_one() {
            break;
        }
    }
}

/// Counts a new connection, and lets it in or refuses it by its listener's rules.
fn on_accept(worker: &Rc<Worker>, stream: Stream, peer: Option<IpAddr>, socket: &Rc<SocketKey>) {
    let generation = worker.generation();
    let Some(listener) = generation.listener_at(socket) else {
        return;
    };
    listener.state.metrics.mine().connections.add(1);
    let connection = AcceptedConnection {
        stream,
        peer,
        socket: Rc::clone(socket),
        proxy_header: None,
        header_timeout: listener.config.timeouts.header,
    };
    if let Some(rules) = &listener.config.accept_proxy {
        return expect_proxy_header(worker, &generation, listener, rules, connection);
    }
    let permit = if is_allowed(listener, peer) {
        acquire_permit(worker, listener, peer)
    } else {
        Err(Reason::RequestDenied)
    };
    start_or_refuse(worker, &generation, listener, connection, permit);
}

/// False if the listener's rules keep the client out. Where connections have requests, each request
/// of a denied client gets a response instead.
fn is_allowed(listener: &Listener, peer: Option<IpAddr>) -> bool {
    let config = &listener.config;
    listener.service.has_requests() || http::is_allowed(peer, &config.allow, &config.deny)
}

/// Begins a connection that must start with a PROXY header. One from an address that is not trusted
/// with headers is refused unread.
fn expect_proxy_header(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    rules: &AcceptProxyConfig,
    connection: AcceptedConnection,
) {
    if !http::is_allowed(connection.peer, &rules.from, &[]) {
        let denied = Reason::RequestDenied;
        return reject(worker, generation, listener, &connection, denied);
    }
    // Only the limit per client has to wait until the client is known.
    match acquire_permit(worker, listener, None) {
        Ok(permit) => {
            let version = rules.version;
            let worker = Rc::clone(worker);
            drop(spawn_local(async move {
                if let Some(connection) = receive_proxy_header(&worker, connection, version).await {
                    on_proxy_header(&worker, connection, permit);
                }
            }));
        }
        Err(reason) => refuse(worker, generation, listener, connection, reason),
    }
}

/// Takes the header off the connection; `None` if the connection was refused or ended.
async fn receive_proxy_header(
    worker: &Rc<Worker>,
    mut connection: AcceptedConnection,
    version: Option<ProxyVersion>,
) -> Option<AcceptedConnection> {
    let began = clock::now();
    let time = connection
        .header_timeout
        .unwrap_or(proxy_header::READ_TIMEOUT);
    let deadline = began + time;
    let stop = worker.until_cut();
    match proxy_header::read_proxy_header(&connection.stream, version, deadline, stop).await {
        Ok(header) => {
            connection.peer = header.client(connection.peer);
            connection.proxy_header = Some(Box::new(header));
            // One deadline from the accept to the head of the first request.
            let took = clock::now().saturating_duration_since(began);
            connection.header_timeout = connection
                .header_timeout
                .map(|time| time.saturating_sub(took));
            Some(connection)
        }
        Err(reason) => {
            let generation = worker.generation();
            let listener = generation.listener_at(&connection.socket);
            if let (Some(listener), Some(reason)) = (listener, reason) {
                reject(worker, &generation, listener, &connection, reason);
            }
            None
        }
    }
}

/// Lets in a connection whose client is known now, by the rules in force now.
fn on_proxy_header(worker: &Rc<Worker>, connection: AcceptedConnection, permit: ConnectionPermit) {
    let generation = worker.generation();
    let Some(listener) = generation.listener_at(&connection.socket) else {
        return connection.stream.set_reset_on_close();
    };
    let permit = if is_allowed(listener, connection.peer) {
        acquire_client_permit(permit, listener, connection.peer)
    } else {
        Err(Reason::RequestDenied)
    };
    start_or_refuse(worker, &generation, listener, connection, permit);
}

fn start_or_refuse(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Arc<Listener>,
    connection: AcceptedConnection,
    permit: Result<ConnectionPermit, Reason>,
) {
    match permit {
        Ok(permit) if listener.tls.is_some() => start_tls(worker, listener, connection, permit),
        Ok(permit) => serve(worker, &listener.service, connection, permit),
        Err(reason) => refuse(worker, generation, listener, connection, reason),
    }
}

/// Performs the TLS handshake, then starts the service in another task: the handshake's state is
/// large, and must not live as long as the connection.
fn start_tls(
    worker: &Rc<Worker>,
    listener: &Arc<Listener>,
    connection: AcceptedConnection,
    permit: ConnectionPermit,
) {
    let (worker, listener) = (Rc::clone(worker), Arc::clone(listener));
    drop(spawn_local(async move {
        if let Some(connection) = secure(&worker, &listener, connection).await {
            serve(&worker, &listener.service, connection, permit);
        }
    }));
}

/// Starts the service of a connection: the one place that tells protocols apart.
fn serve(
    worker: &Rc<Worker>,
    service: &ListenerService,
    connection: AcceptedConnection,
    permit: ConnectionPermit,
) {
    match service {
        ListenerService::Http => {
            // Entered before the task runs: a drain that begins now must find the connection.
            let client = connection.into_client(worker);
            drop(spawn_local(hold(permit, Rc::clone(worker), |worker| {
                http::serve(worker, client)
            })));
        }
        ListenerService::Tcp => {
            drop(spawn_local(hold(permit, Rc::clone(worker), |worker| {
                session(worker, connection)
            })));
        }
        ListenerService::SniPassthrough(_) => {
            drop(spawn_local(hold(permit, Rc::clone(worker), |worker| {
                sni_session(worker, connection)
            })));
        }
    }
}

/// Holds `permit` until the service of its connection ends, and polls the service in turns of
/// `worker`. The future of the service is made in here, as one that is moved into another future
/// takes its place twice: 256 bytes per connection.
async fn hold<F: Future<Output = ()>>(
    permit: ConnectionPermit,
    worker: Rc<Worker>,
    service: impl FnOnce(Rc<Worker>) -> F,
) {
    let mut service = pin!(service(Rc::clone(&worker)));
    poll_fn(|cx| worker.in_turn(|| service.as_mut().poll(cx))).await;
    drop(permit);
}

/// Refuses a connection: with a response where its client expects one, but not under a flood, in
/// which refusals must stay cheap.
fn refuse(
    worker: &Rc<Worker>,
    generation: &Snapshot,
    listener: &Listener,
    connection: AcceptedConnection,
    reason: Reason,
) {
    // A response under TLS would cost a handshake first.
    let gets_response = listener.service.has_requests()
        && listener.tls.is_none()
        && worker.connections.count() < worker.max_answered_connections();
    if !gets_response {
        return reject(worker, generation, listener, &connection, reason);
    }
    listener.state.metrics.mine().rejected.add(reason);
    let status = http::overload_status(generation);
    log_refusal(
        worker,
        generation,
        listener,
        connection.peer,
        status,
        reason,
    );
    let client = connection.into_client(worker);
    let response = http::refuse(Rc::clone(worker), client, Reason::Overload);
    drop(spawn_local(response));
}

/// Resets the connection.
fn reject(
    worker: &Worker,
    generation: &Snapshot,
    listener: &Listener,
    connection: &AcceptedConnection,
    reason: Reason,
) {
    listener.state.metrics.mine().rejected.add(reason);
    // After a FIN a client could take the refusal for an empty response.
    connection.stream.set_reset_on_close();
    log_refusal(worker, generation, listener, connection.peer, 0, reason);
}

/// Writes one line for a connection that was not let in; `status` is 0 where it was reset.
fn log_refusal(
    worker: &Worker,
    generation: &Snapshot,
    listener: &Listener,
    peer: Option<IpAddr>,
    status: u16,
    reason: Reason,
) {
    let log = &generation.access_log;
    let took = Duration::ZERO;
    if log.wants(status, Some(reason), took, &mut worker.random.borrow_mut()) {
        let mut record = AccessRecord::begin(clock::now(), &listener.config.name, peer);
        record.status = status;
        record.reason = Some(reason);
        log.write(&record, &RequestText::default(), &[], took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the task that `start` makes.
    fn size_of_task<F: Future>(
        _: impl Fn(ConnectionPermit, Rc<Worker>, http::ClientConnection) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_http_connection_holds_its_service_once() {
        let task = size_of_task(|permit, worker, client| {
            hold(permit, worker, |worker| http::serve(worker, client))
        });
        let service = size_of_task(|_, worker, client| http::serve(worker, client));
        let arguments = size_of::<(ConnectionPermit, Rc<Worker>, http::ClientConnection)>();
        assert!(
            task <= service + arguments + 80,
            "{task} {service} {arguments}"
        );
        assert!(task < 2 * service, "{task} {service}");
    }
}
