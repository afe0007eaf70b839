//! Field blocks of a peer: heads of requests or of responses, and trailers; RFC 9113 sections 6.2, 6.10 and 8.1.

use std::{cell::RefCell, time::Duration};

use super::{
    backend::{MAX_SECTIONS, response},
    core::{Block, Core, Leave, Role},
    flood_guard::{LATE_HEAD_COST, rapid_reset_age},
    incoming::Asked,
    input::{Whose, Wrong},
    reader, request, websocket,
};
use crate::{
    base::clock,
    http1::response::MAX_HEAD,
    http2::{
        self,
        frame::{Code, Frame, MAX_PAYLOAD, flag},
        hpack::{Fields, Refused},
    },
};

/// Frames that a field block may have beside those that its size asks for.
const CONTINUATIONS: usize = 5;

thread_local! {
    /// The fields of the block that is being read.
    static FIELDS: RefCell<Fields> = RefCell::default();
}

/// How long the client of a gRPC call waits for its end.
fn deadline(fields: &Fields) -> Option<Duration> {
    let mut fields = fields.iter();
    let (_, value) = fields.find(|(name, _)| *name == b"grpc-timeout")?;
    http2::grpc_timeout(value)
}

impl Core {
    /// RFC 9113 section 6.2.
    pub(super) fn headers(&mut self, frame: Frame, payload: &[u8]) -> Result<(), Wrong> {
        let (mut block, mut padding) = (payload, 0);
        if frame.has(flag::PADDED) {
            let (first, rest) = block.split_first().ok_or(Code::FRAME_SIZE_ERROR)?;
            (block, padding) = (rest, usize::from(*first));
        }
        if frame.has(flag::PRIORITY) {
            block = block.get(5..).ok_or(Code::FRAME_SIZE_ERROR)?;
        }
        let length = block
            .len()
            .checked_sub(padding)
            .ok_or(Code::PROTOCOL_ERROR)?;
        let block = block.get(..length).unwrap_or_default();
        let ends = frame.has(flag::END_STREAM);
        if frame.has(flag::END_HEADERS) {
            return self.block(frame.stream, ends, block);
        }
        self.block = Some(Box::new(Block {
            stream: frame.stream,
            ends,
            bytes: block.to_vec(),
            frames: 0,
        }));
        Ok(())
    }

    /// RFC 9113 section 6.10.
    pub(super) fn continuation(&mut self, frame: Frame, payload: &[u8]) -> Result<(), Wrong> {
        let most = self.most_fields();
        let Some(mut block) = self.block.take() else {
            return Err(Code::PROTOCOL_ERROR.into());
        };
        block.frames += 1;
        block.bytes.extend_from_slice(payload);
        if block.bytes.len() > most || block.frames > CONTINUATIONS + most / MAX_PAYLOAD {
            return Err(Code::ENHANCE_YOUR_CALM.into());
        }
        if frame.has(flag::END_HEADERS) {
            return self.block(block.stream, block.ends, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// Twice what is allowed, so that what is too large can be answered, and be told apart.
    fn most_fields(&self) -> usize {
        2 * match &self.role {
            Role::Client(client) => client.limits.bytes,
            Role::Backend(_) => MAX_HEAD,
        }
    }

    /// A field block that is whole.
    fn block(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Wrong> {
        let most = self.most_fields();
        FIELDS.with_borrow_mut(|fields| {
            self.decoder
                .decode(block, most, fields)
                .map_err(|refused| match refused {
                    Refused::Malformed => Code::COMPRESSION_ERROR,
                    Refused::TooLarge => Code::ENHANCE_YOUR_CALM,
                })?;
            match self.role {
                Role::Client(_) => self.asks(id, ends, fields),
                Role::Backend(_) => self.answers(id, ends, fields),
            }
        })
    }

    /// Trailers of a message.
    fn trailers(&mut self, id: u32, ends: bool, fields: &Fields) -> Result<(), Wrong> {
        let Some(flow) = self.live(id) else {
            self.flood_guard.charge(LATE_HEAD_COST);
            return Ok(());
        };
        if flow.got_end {
            return Err(Wrong::Stream(id, Code::STREAM_CLOSED));
        }
        match reader::trailer_section(fields) {
            Some(section) if ends => self.ends(id, section),
            Some(_) => self.malformed(id, "trailers that are not the end"),
            None => self.malformed(id, "trailers with a field that HTTP/2 does not have there"),
        }
        Ok(())
    }

    /// Fields of a client.
    fn asks(&mut self, id: u32, ends: bool, fields: &Fields) -> Result<(), Wrong> {
        if id <= self.last || id.is_multiple_of(2) {
            return match self.whose(id)? {
                Whose::Open => self.trailers(id, ends, fields),
                // RFC 9113 section 5.1.1.
                Whose::Past => self.is_late(id).map_err(|_| Code::PROTOCOL_ERROR.into()),
            };
        }
        self.last = id;
        let mut flow = self.new_flow();
        let Role::Client(client) = &mut self.role else {
            return Ok(());
        };
        // A stream that is closed, RFC 9113 section 5.1, can still be in use.
        let in_use = self.flows.len();
        let is_full = in_use >= client.most && {
            let open = self.flows.values().filter(|flow| flow.is_open());
            open.count() >= client.most || in_use >= 2 * client.most
        };
        if is_full || client.leave == Leave::Taken {
            // It may not have seen our settings (RFC 9113 section 6.5.3), or that we leave.
            let is_expected = !self.is_acknowledged || client.leave == Leave::Taken;
            self.refuse_request(id, is_expected);
            return Ok(());
        }
        let random = &mut client.random;
        let key = || {
            let nonce = u128::from(random.bits()) << 64 | u128::from(random.bits());
            websocket::key(nonce.to_be_bytes())
        };
        let read = request::read(fields, ends, client.limits, key);
        let mut asked = Asked {
            id,
            is_head: false,
            accept: None,
            refusal: None,
        };
        let now = *self.read_at.get_or_insert_with(clock::now);
        flow.rapid_until = Some(now + rapid_reset_age(deadline(fields)));
        flow.got_end = ends;
        match read {
            Ok(request) => {
                asked.is_head = request.is_head;
                asked.accept = request.accept;
                flow.reader.begin(request.head);
            }
            Err(reason) => {
                asked.refusal = Some(reason);
                asked.is_head = fields.iter().any(|field| field == (b":method", b"HEAD"));
                flow.reader.begin(request::nothing());
            }
        }
        if ends {
            flow.reader.end(Vec::new());
        }
        self.flows.insert(id, flow);
        client.asked.push_back(asked);
        self.flood_guard.credit_request();
        Ok(())
    }

    /// Fields of a backend.
    fn answers(&mut self, id: u32, ends: bool, fields: &Fields) -> Result<(), Wrong> {
        if let Whose::Past = self.whose(id)? {
            return self.is_late(id);
        }
        let Some(flow) = self.live(id) else {
            self.flood_guard.charge(LATE_HEAD_COST);
            return Ok(());
        };
        flow.sections += 1;
        if flow.sections > MAX_SECTIONS {
            return Err(Code::ENHANCE_YOUR_CALM.into());
        }
        if flow.reader.is_begun() {
            return self.trailers(id, ends, fields);
        }
        match response::read(fields, ends, &flow.expected) {
            Ok(response::Read::Interim(text)) => flow.reader.interim(text),
            Ok(response::Read::Final(head)) => {
                flow.reader.begin(head);
                if ends {
                    flow.got_end = true;
                    flow.reader.end(Vec::new());
                }
            }
            Err(what) => {
                self.malformed(id, what);
                return Ok(());
            }
        }
        flow.wake_reader();
        if let Role::Backend(backend) = &mut self.role {
            backend.has_answered = true;
        }
        Ok(())
    }
}
