//! One end of a TLS connection as records in and bytes out. No sockets, no waiting: who calls moves the bytes.
//!
//! Works on rustls' unbuffered interface, so that a connection with nothing on its way holds no buffer at all.

use std::fmt;

use rustls::{
    Error, HandshakeKind, ProtocolVersion,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon,
        UnbufferedStatus, WriteTraffic,
    },
};
use tokio::io::ReadBuf;

/// Bytes a record adds to its plaintext, rounded up: header, nonce, type, tag.
const RECORD_OVERHEAD: usize = 40;
/// Most plaintext in one record, RFC 8446 section 5.1.
const RECORD: usize = 16 << 10;

/// Either end of a connection.
pub(super) enum End {
    /// A client has connected to us.
    Server(UnbufferedServerConnection),
    /// We have connected to a backend.
    Client(UnbufferedClientConnection),
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Client(_) => "Client",
        })
    }
}

/// What both kinds of connection can do.
trait Records<Data> {
    fn records<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Data>;
}

impl Records<ServerConnectionData> for UnbufferedConnectionCommon<ServerConnectionData> {
    fn records<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(input)
    }
}

impl Records<ClientConnectionData> for UnbufferedConnectionCommon<ClientConnectionData> {
    fn records<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(input)
    }
}

/// Where decrypted bytes go: what fits to whoever reads, the rest is kept.
pub(super) struct Plain<'a, 'b> {
    /// The reader's.
    pub(super) target: &'a mut ReadBuf<'b>,
    /// What did not fit.
    pub(super) rest: &'a mut Vec<u8>,
}

impl Plain<'_, '_> {
    fn push(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(self.target.remaining());
        let (now, later) = bytes.split_at(fits);
        self.target.put_slice(now);
        self.rest.extend_from_slice(later);
    }
}

/// What a look at the input brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Digested {
    /// Bytes of the input that are done with.
    pub(super) used: usize,
    /// The peer has ended its direction in order.
    pub(super) ended: bool,
}

/// Works through whole records of `input`. What is to be sent for it is added to `out`, the fatal alert of an error too.
pub(super) fn digest(
    end: &mut End,
    input: &mut [u8],
    plain: &mut Plain<'_, '_>,
    out: &mut Vec<u8>,
) -> Result<Digested, Error> {
    match end {
        End::Server(connection) => digest_any(&mut **connection, input, plain, out),
        End::Client(connection) => digest_any(&mut **connection, input, plain, out),
    }
}

fn digest_any<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    input: &mut [u8],
    plain: &mut Plain<'_, '_>,
    out: &mut Vec<u8>,
) -> Result<Digested, Error>
where
    UnbufferedConnectionCommon<Data>: Records<Data>,
{
    let mut digested = Digested::default();
    loop {
        let rest = input.get_mut(digested.used..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = connection.records(rest);
        let mut is_over = false;
        match state {
            Err(error) => {
                let rest = input.get_mut(digested.used + discard..).unwrap_or_default();
                take_alert(connection, rest, out);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.push(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                take_message(&mut data, out);
            }
            // What was encoded is queued in `out`, in order: as good as sent.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => digested.ended = true,
            Ok(_) => is_over = true,
        }
        digested.used += discard;
        if is_over {
            return Ok(digested);
        }
    }
}

/// The alert that says what was wrong goes to the peer, behind what was said before. `rest` is what was not worked off:
/// rustls remembers places in it. Not one call more: that would look at what is wrong once again.
fn take_alert<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    rest: &mut [u8],
    out: &mut Vec<u8>,
) where
    UnbufferedConnectionCommon<Data>: Records<Data>,
{
    while connection.wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.records(rest).state
    {
        take_message(&mut data, out);
    }
}

/// Queues a message of the handshake, or an alert.
fn take_message<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    append(out, |room| match data.encode(room) {
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        // Encoded at the first call with enough room, which is the last.
        Err(EncodeError::AlreadyEncoded) => Ok(0),
        Ok(count) => Ok(count),
    });
}

/// Appends what `write` makes; it says how much room it needs if that is too little.
fn append(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let before = out.len();
    let mut room = 1 << 10;
    loop {
        out.resize(before + room, 0);
        match write(out.get_mut(before..).unwrap_or_default()) {
            Ok(count) => return out.truncate(before + count),
            Err(needed) if needed > room => room = needed,
            // Said to be enough and yet not: nothing to write.
            Err(_) => return out.truncate(before),
        }
    }
}

/// Encrypts `bytes` to the end of `out`. Nothing is added when no more may be sent. `incoming` is what was received and not
/// worked off.
pub(super) fn encrypt(
    end: &mut End,
    incoming: &mut Vec<u8>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    with_traffic(end, incoming, out, |traffic, out| {
        let before = out.len();
        let mut room = bytes.len() + (bytes.len() / RECORD + 1) * RECORD_OVERHEAD;
        loop {
            out.resize(before + room, 0);
            match traffic.encrypt(bytes, out.get_mut(before..).unwrap_or_default()) {
                Ok(count) => {
                    out.truncate(before + count);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                    room = size.required_size;
                }
                Err(_) => {
                    out.truncate(before);
                    return Err(Error::EncryptError);
                }
            }
        }
    })
}

/// Adds the orderly end of our direction (`close_notify`) to `out`.
pub(super) fn close(end: &mut End, incoming: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Error> {
    with_traffic(end, incoming, out, |traffic, out| {
        append(out, |room| match traffic.queue_close_notify(room) {
            Ok(count) => Ok(count),
            Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
            Err(EncryptError::EncryptExhausted) => Ok(0),
        });
        Ok(())
    })
}

fn with_traffic(
    end: &mut End,
    incoming: &mut Vec<u8>,
    out: &mut Vec<u8>,
    work: impl FnOnce(&mut dyn Traffic, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    match end {
        End::Server(connection) => with_traffic_of(&mut **connection, incoming, out, work),
        End::Client(connection) => with_traffic_of(&mut **connection, incoming, out, work),
    }
}

/// What may be done once the handshake is over.
trait Traffic {
    fn encrypt(&mut self, bytes: &[u8], room: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, room: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Traffic for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, bytes: &[u8], room: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, bytes, room)
    }

    fn queue_close_notify(&mut self, room: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, room)
    }
}

fn with_traffic_of<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    incoming: &mut Vec<u8>,
    out: &mut Vec<u8>,
    work: impl FnOnce(&mut dyn Traffic, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error>
where
    UnbufferedConnectionCommon<Data>: Records<Data>,
{
    // rustls remembers places in what is not worked off, so that it must see it at every call.
    loop {
        let UnbufferedStatus { discard, state } = connection.records(incoming);
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => return work(&mut traffic, out),
            ConnectionState::EncodeTlsData(mut data) => take_message(&mut data, out),
            ConnectionState::TransmitTlsData(data) => data.done(),
            // The peer's end was seen before.
            ConnectionState::PeerClosed => {}
            _ => return Err(Error::HandshakeNotComplete),
        }
        incoming.drain(..discard.min(incoming.len()));
    }
}

impl End {
    /// The handshake is not over.
    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Self::Server(connection) => connection.is_handshaking(),
            Self::Client(connection) => connection.is_handshaking(),
        }
    }

    /// What was agreed on; `None` before.
    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        match self {
            Self::Server(connection) => connection.protocol_version(),
            Self::Client(connection) => connection.protocol_version(),
        }
    }

    /// The protocol that was agreed on by ALPN.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Server(connection) => connection.alpn_protocol(),
            Self::Client(connection) => connection.alpn_protocol(),
        }
    }

    /// An earlier session was taken up.
    pub(super) fn is_resumed(&self) -> bool {
        let kind = match self {
            Self::Server(connection) => connection.handshake_kind(),
            Self::Client(connection) => connection.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// The leaf certificate of the peer, in DER.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        let chain = match self {
            Self::Server(connection) => connection.peer_certificates(),
            Self::Client(connection) => connection.peer_certificates(),
        };
        chain?.first().map(|leaf| &**leaf)
    }
}
