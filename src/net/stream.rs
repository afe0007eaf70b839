//! One connected byte stream, to a client or to a backend: TCP, unix socket, or TLS over one.
//!
//! Everything above works on [`Stream`] and never on a descriptor, so an encrypted stream is one
//! more variant. Must not know who is at the other end.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use rustix::{
    buffer::{Buffer, spare_capacity},
    net::{
        RecvFlags, SendAncillaryBuffer, SendFlags, getpeername, getsockname, recv, send, sendmsg,
    },
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{
    driver::{DrivenSocket, SocketWait},
    tls::{NegotiatedTls, TlsStream},
};

/// A connected stream of the calling thread's runtime.
#[derive(Debug)]
pub enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(DrivenSocket),
    /// A unix socket.
    Unix(DrivenSocket),
    /// TLS over one of the others.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// A connected TCP socket, as a stream of the calling thread's runtime.
    pub fn from_tcp(socket: std::net::TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        DrivenSocket::connected(socket.into()).map(Self::Tcp)
    }

    /// A connected unix socket, as a stream of the calling thread's runtime.
    pub fn from_unix(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        DrivenSocket::connected(socket.into()).map(Self::Unix)
    }

    /// Reads without waiting: `WouldBlock` when there is nothing, `Ok(0)` at the end of the stream.
    ///
    /// Makes no system call unless the driver has seen something, and none after a read that did
    /// not fill `buffer`: a small request costs one receive, not two.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Self::Tls(tls) = self {
            return tls.try_read(buffer);
        }
        let capacity = buffer.len();
        self.try_receive(buffer, capacity)
    }

    /// As [`Stream::try_read`], for any kind of buffer, of `capacity` bytes. Not under TLS.
    fn try_receive(&self, buffer: impl Buffer<u8>, capacity: usize) -> io::Result<usize> {
        let socket = self.plain()?;
        if socket.is_at_end() {
            return Ok(0);
        }
        let (_, count) = socket.try_io(SocketWait::Read, |socket| {
            Ok(recv(socket, buffer, RecvFlags::empty())?)
        })?;
        if count == 0 {
            socket.check_end()?;
        }
        if 0 < count && count < capacity && socket.is_drained_by_short_read() {
            socket.set_unready(SocketWait::Read);
        }
        Ok(count)
    }

    /// Writes what fits, without waiting: `WouldBlock` when nothing does. Makes no system call
    /// while the driver knows that the socket is full, and sends few bytes at the end of the turn.
    /// After `WouldBlock` the same bytes must come
    /// again: under TLS they may be encrypted already.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.try_write(bytes, false),
            _ => self.try_write_parts(&[IoSlice::new(bytes)]),
        }
    }

    /// As [`Stream::try_write`], for bytes in several places. Not under TLS.
    fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = parts.iter().map(|part| part.len()).sum();
        if self.plain()?.try_queue(parts, length)? {
            return Ok(length);
        }
        self.try_send_with(length, |socket| {
            if let [part] = parts {
                return send(socket, part, SendFlags::NOSIGNAL);
            }
            let control = &mut SendAncillaryBuffer::default();
            sendmsg(socket, parts, control, SendFlags::NOSIGNAL)
        })
    }

    /// As [`Stream::try_write`], for the last bytes before an immediate shutdown. Uses `MSG_MORE`,
    /// so data and FIN share a segment; TLS adds its `close_notify`.
    pub fn try_write_last(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.try_write(bytes, true),
            _ => self.try_send_with(bytes.len(), |socket| {
                send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::MORE)
            }),
        }
    }

    /// Sends what fits of `length` bytes by `operation`. Not under TLS.
    pub(super) fn try_send_with(
        &self,
        length: usize,
        operation: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let socket = self.plain()?;
        let count = socket.try_io(SocketWait::Write, |socket| Ok(operation(socket)?))?;
        socket.note_sent(count);
        if count < length {
            socket.set_unready(SocketWait::Write);
        }
        Ok(count)
    }

    /// True if an idle connection can be used: nothing to read, not closed, no error. Bytes on an
    /// idle connection are a response to no request, and must not become that of the next one.
    ///
    /// Makes a system call only if the driver has seen something.
    pub fn is_idle_and_open(&self) -> bool {
        if let Self::Tls(tls) = self {
            return tls.is_idle_and_open();
        }
        if self
            .plain()
            .is_ok_and(|socket| socket.check_sends().is_err())
        {
            return false;
        }
        let peeked = self.try_io(SocketWait::Read, |socket| {
            let (count, _) = recv(socket, &mut [0_u8; 1][..], RecvFlags::PEEK)?;
            Ok(count)
        });
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// True if nothing has arrived that was not read, and the peer has not ended. Asks the kernel
    /// even if the driver has seen nothing yet: before an idle connection is closed, a request that
    /// has just arrived must be found.
    pub fn has_no_pending_input(&self) -> bool {
        if let Self::Tls(tls) = self {
            return tls.has_no_pending_input();
        }
        let Some(socket) = self.fd() else {
            return false;
        };
        let peeked = recv(
            socket,
            &mut [0_u8; 1][..],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        );
        matches!(peeked, Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Ready when the peer has reset the connection, or a unix peer has closed it. Not at a FIN: a
    /// peer that has ended its own direction may still read.
    pub fn poll_disconnected(&self, cx: &mut Context<'_>) -> Poll<()> {
        let socket = self.socket();
        let is_unix = matches!(socket, Self::Unix(_));
        match socket {
            // A socket that the kernel cannot watch is as good as lost.
            Self::Tcp(socket) | Self::Unix(socket) => socket
                .poll_ready(cx, SocketWait::Failure { is_unix })
                .map(drop),
            Self::Tls(_) => {
                debug_assert!(false, "TLS is over a plain socket");
                Poll::Pending
            }
        }
    }

    /// Ready when the peer has ended its direction, whether or not all was read, or the connection
    /// has failed. Not at the close alert of TLS alone.
    pub fn poll_peer_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.socket() {
            // A socket that the kernel cannot watch is as good as lost.
            Self::Tcp(socket) | Self::Unix(socket) => {
                socket.poll_ready(cx, SocketWait::End).map(drop)
            }
            Self::Tls(_) => {
                debug_assert!(false, "TLS is over a plain socket");
                Poll::Pending
            }
        }
    }

    /// As [`Stream::try_read`], and leaves the bytes in the stream. Not under TLS.
    pub fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_io(SocketWait::Read, |socket| {
            let (count, _) = recv(socket, buffer, RecvFlags::PEEK)?;
            Ok(count)
        })
    }

    /// Ends our direction (FIN) and leaves the other one open. `WouldBlock` while the kernel does
    /// not take what was written, under TLS with `close_notify`.
    pub fn shutdown_write(&self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            return tls.shutdown_write();
        }
        let socket = self.plain()?;
        if !socket.send_queued()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?)
    }

    /// Makes the coming drop a reset (RST) instead of an orderly end. No effect on unix sockets,
    /// which have no reset.
    pub fn set_reset_on_close(&self) {
        if let Self::Tcp(socket) | Self::Unix(socket) = self.socket() {
            socket.set_reset_on_close();
        }
    }

    /// The stream below TLS, or the stream itself.
    fn socket(&self) -> &Self {
        match self {
            Self::Tls(tls) => tls.socket(),
            _ => self,
        }
    }

    /// The TLS of a connection under TLS.
    pub const fn tls(&self) -> Option<&TlsStream> {
        match self {
            Self::Tls(tls) => Some(tls),
            _ => None,
        }
    }

    /// Parameters of a connection under TLS.
    pub fn negotiated_tls(&self) -> Option<&NegotiatedTls> {
        self.tls().map(TlsStream::negotiated)
    }

    /// Version of TLS as the log writes it; empty without TLS.
    pub fn tls_version(&self) -> &'static str {
        self.negotiated_tls().map_or("", NegotiatedTls::version)
    }

    /// True if the kernel can move the bytes without us (splice).
    pub const fn is_plain(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Unix(_))
    }

    /// Bytes that the peer's kernel has acknowledged so far; `None` on unix sockets and if the
    /// kernel does not tell.
    pub fn bytes_acked(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(socket) = self.socket() {
            // An error shows at the next operation.
            let _ = socket.send_queued();
            return super::sys::tcp_bytes_acked(socket.as_fd());
        }
        None
    }

    /// Written bytes that the peer has not acknowledged; `None` if the kernel does not tell.
    pub fn unacked(&self) -> Option<u64> {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(socket) | Self::Unix(socket) = self.socket() {
            // An error shows at the next operation.
            let _ = socket.send_queued();
            let unsent = socket.unsent() as u64;
            return super::sys::unacked(socket.as_fd()).map(|count| count + unsent);
        }
        None
    }

    /// Address of the peer, an IPv4 peer of an IPv6 socket as IPv4; `None` on unix sockets.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_addr().map(|peer| peer.ip().to_canonical())
    }

    /// Address and port of the peer; `None` on unix sockets.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self.socket() {
            Self::Tcp(socket) => getpeername(socket).ok()??.try_into().ok(),
            Self::Unix(_) | Self::Tls(_) => None,
        }
    }

    /// Our own address and port; `None` on unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self.socket() {
            Self::Tcp(socket) => getsockname(socket).ok()?.try_into().ok(),
            Self::Unix(_) | Self::Tls(_) => None,
        }
    }

    /// Ready when a read will not wait: data, the end of the stream, or an error.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) | Self::Unix(socket) => socket.poll_ready(cx, SocketWait::Read),
            Self::Tls(tls) => tls.poll_read_ready(cx),
        }
    }

    /// Ready when a write will not wait.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) | Self::Unix(socket) => socket.poll_ready(cx, SocketWait::Write),
            Self::Tls(tls) => tls.socket().poll_write_ready(cx),
        }
    }

    /// Reads into `buffer`; `Ok(0)` is the end of the stream (or an empty `buffer`).
    pub fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut target = ReadBuf::new(buffer);
        Pin::new(self)
            .poll_read(cx, &mut target)
            .map_ok(|()| target.filled().len())
    }

    /// Reads into the spare capacity of `buffer`; `Ok(0)` is the end of the stream (or no spare
    /// capacity).
    pub fn poll_read_vec(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        if let Self::Tls(_) = self {
            return pin!(self.read_buf(buffer)).poll(cx);
        }
        self.poll_io(cx, SocketWait::Read, |stream| {
            let spare = buffer.capacity() - buffer.len();
            stream.try_receive(spare_capacity(buffer), spare)
        })
    }

    /// Makes `attempt` as soon as it need not wait, and again if it would have to after all. Not
    /// under TLS.
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        wait: SocketWait,
        mut attempt: impl FnMut(&Self) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let socket = self.plain()?;
        loop {
            ready!(socket.poll_ready(cx, wait))?;
            match attempt(self) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// The socket itself; an error under TLS, where that would bypass the encryption.
    fn plain(&self) -> io::Result<&DrivenSocket> {
        match self {
            Self::Tcp(socket) | Self::Unix(socket) => Ok(socket),
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Runs `operation` on the descriptor if it is ready as far as is known; after `WouldBlock` it
    /// is not, until the next event. Not under TLS.
    pub(super) fn try_io<T>(
        &self,
        wait: SocketWait,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.plain()?.try_io(wait, operation)
    }

    /// The error of an earlier send, which shows at the end of what the peer has sent. Not under
    /// TLS.
    pub(super) fn check_end(&self) -> io::Result<()> {
        self.plain()?.check_end()
    }

    /// True if a drop ends our direction in order, as a FIN does: the kernel has taken all that was
    /// written. Not under TLS, where `close_notify` would be missing.
    pub fn ends_by_drop(&self) -> bool {
        self.plain()
            .is_ok_and(|socket| matches!(socket.send_queued(), Ok(true)))
    }

    /// The socket below.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self.socket() {
            Self::Tcp(socket) | Self::Unix(socket) => Some(socket.as_fd()),
            Self::Tls(_) => None,
        }
    }
}

impl From<TlsStream> for Stream {
    fn from(tls: TlsStream) -> Self {
        Self::Tls(Box::new(tls))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = match self.get_mut() {
            Self::Tls(tls) => return tls.poll_read(cx, buffer),
            stream => stream,
        };
        let read = ready!(stream.poll_io(cx, SocketWait::Read, |stream| {
            stream.try_read(buffer.initialize_unfilled())
        }));
        Poll::Ready(read.map(|count| buffer.advance(count)))
    }
}

// Not the methods of tokio's streams: those call the C library, whose `send` and `recv` also check
// if the thread was cancelled.
impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(tls) => tls.poll_write(cx, bytes),
            stream => stream.poll_io(cx, SocketWait::Write, |stream| stream.try_write(bytes)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = match self.get_mut() {
            Self::Tls(tls) => return tls.poll_write_vectored(cx, parts),
            stream => stream,
        };
        stream.poll_io(cx, SocketWait::Write, |stream| {
            stream.try_write_parts(parts)
        })
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Self::Tcp(socket) | Self::Unix(socket)) = self.socket() else {
            return Poll::Ready(Ok(()));
        };
        while !socket.send_queued()? {
            ready!(socket.poll_ready(cx, SocketWait::Write))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.shutdown_write() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_write_ready(cx))?;
                }
                ended => return Poll::Ready(ended),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;
    use crate::net::fixture::pair;

    /// Waits until the driver has seen something to read.
    async fn readable(stream: &Stream) {
        let ready = std::future::poll_fn(|cx| stream.poll_read_ready(cx)).await;
        ready.unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_can_be_used_until_the_peer_sends_or_leaves() {
        let (mut peer, stream) = pair().await;
        assert!(stream.is_idle_and_open());
        peer.write_all(b"x").await.unwrap();
        readable(&stream).await;
        assert!(!stream.is_idle_and_open());
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 1);
        assert!(stream.is_idle_and_open());
        drop(peer);
        readable(&stream).await;
        assert!(!stream.is_idle_and_open());
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_half_close_is_no_disconnect_and_a_reset_is() {
        let (mut peer, stream) = pair().await;
        peer.shutdown().await.unwrap();
        readable(&stream).await;
        let polled = poll_fn(|cx| Poll::Ready(stream.poll_disconnected(cx).is_ready()));
        assert!(!polled.await);
        peer.set_zero_linger().unwrap();
        drop(peer);
        poll_fn(|cx| stream.poll_disconnected(cx)).await;
    }

    #[tokio::test]
    async fn a_unix_peer_that_closed_has_disconnected() {
        let (peer, ours) = UnixStream::pair().unwrap();
        drop(peer);
        let ours = Stream::from(ours);
        poll_fn(|cx| ours.poll_disconnected(cx)).await;
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn acknowledged_bytes_are_counted() {
        let (_peer, mut stream) = pair().await;
        let before = stream.bytes_acked().unwrap();
        stream.write_all(&[0; 1_000]).await.unwrap();
        // Loopback acknowledges within the call or soon after it.
        while stream.bytes_acked().unwrap() < before + 1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(stream.bytes_acked().unwrap(), before + 1_000);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_a_peer_does_not_take_is_counted_until_it_does() {
        let (mut tcp, tcp_end) = pair().await;
        let (mut unix, unix_end) = UnixStream::pair().unwrap();
        let unix_end = Stream::from(unix_end);
        for (stream, peer) in [
            (&tcp_end, &mut tcp as &mut (dyn AsyncRead + Unpin)),
            (&unix_end, &mut unix),
        ] {
            assert_eq!(stream.unacked(), Some(0));
            let mut buffer = vec![0; 1 << 16];
            while stream.try_write(&buffer).is_ok() {}
            let full = stream.unacked().unwrap();
            assert!(full > 0);
            while stream.unacked() == Some(full) {
                peer.read_exact(&mut buffer).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn what_the_driver_has_not_seen_yet_is_not_nothing() {
        use std::io::Write as _;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let stream = Stream::from_tcp(accepted).unwrap();
        assert!(stream.has_no_pending_input());
        peer.write_all(b"GET").unwrap();
        assert!(stream.is_idle_and_open(), "as far as the driver knows");
        assert!(!stream.has_no_pending_input());
    }
}
