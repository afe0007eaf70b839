//! Reads the messages on a connection as the other end does: a parser of its own, so that a fault of ours does not hide
//! behind the same fault. Takes only what balancer may send; everything else is an error of the run.

/// How the body of a message was framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireFraming {
    None,
    Length,
    Chunked,
    UntilClose,
    /// What follows a switch of protocols.
    Tunnel,
}

/// A message, or what has come of it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct WireMessage {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub framing: WireFraming,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The end has come.
    pub whole: bool,
}

impl std::fmt::Debug for WireMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = &self.body;
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]);
        write!(f, "{:?} {:?} ", self.start, self.fields)?;
        write!(f, "{:?} {} bytes {start:?}, ", self.framing, body.len())?;
        write!(f, "trailers {:?}, whole {}", self.trailers, self.whole)
    }
}

impl WireMessage {
    /// The value of the only field called `name`.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Of a response; 0 for a request.
    pub(super) fn status(&self) -> u16 {
        let status = self.start.strip_prefix("HTTP/1.1 ");
        status
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or(0)
    }

    pub(super) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status()) && self.status() != 101
    }

    pub(super) fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WirePosition {
    Head,
    Data(usize),
    Size,
    Chunk(usize),
    ChunkEnd,
    Trailers,
    Rest,
}

/// The messages of one direction of a connection.
#[derive(Debug)]
pub(super) struct WireReader {
    /// Of the requests, where responses are read.
    methods: Option<Vec<&'static str>>,
    finals: usize,
    place: WirePosition,
    line: Vec<u8>,
    head: Vec<String>,
    pub messages: Vec<WireMessage>,
    /// Bytes that came.
    pub bytes: usize,
}

impl WireReader {
    pub(super) fn of_requests() -> Self {
        Self::new(None)
    }

    /// Responses to requests with these methods.
    pub(super) fn of_responses(methods: Vec<&'static str>) -> Self {
        Self::new(Some(methods))
    }

    fn new(methods: Option<Vec<&'static str>>) -> Self {
        Self {
            methods,
            finals: 0,
            place: WirePosition::Head,
            line: Vec::new(),
            head: Vec::new(),
            messages: Vec::new(),
            bytes: 0,
        }
    }

    /// Responses that are not 1xx, whole or not.
    pub(super) fn finals(&self) -> impl Iterator<Item = &WireMessage> {
        self.messages.iter().filter(|message| !message.is_interim())
    }

    /// Final responses that are whole.
    pub(super) fn whole_finals(&self) -> usize {
        self.finals().filter(|message| message.whole).count()
    }

    /// Something of a head has come, not all of it.
    pub(super) fn is_in_head(&self) -> bool {
        self.place == WirePosition::Head && (!self.line.is_empty() || !self.head.is_empty())
    }

    /// The request did not switch protocols after all.
    pub(super) fn no_switch(&mut self) {
        if self.place == WirePosition::Rest {
            self.place = WirePosition::Head;
            self.last().whole = true;
        }
    }

    fn last(&mut self) -> &mut WireMessage {
        self.messages.last_mut().unwrap()
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            match self.place {
                WirePosition::Rest => {
                    self.last().body.extend_from_slice(bytes);
                    return Ok(());
                }
                WirePosition::Data(left) | WirePosition::Chunk(left) => {
                    let count = left.min(bytes.len());
                    let (data, rest) = bytes.split_at(count);
                    self.last().body.extend_from_slice(data);
                    bytes = rest;
                    self.place = match self.place {
                        WirePosition::Chunk(_) if count == left => WirePosition::ChunkEnd,
                        WirePosition::Chunk(_) => WirePosition::Chunk(left - count),
                        _ if count == left => self.end(),
                        _ => WirePosition::Data(left - count),
                    };
                }
                WirePosition::Head
                | WirePosition::Size
                | WirePosition::ChunkEnd
                | WirePosition::Trailers => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let count = end.map_or(bytes.len(), |end| end + 1);
                    self.line.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    if end.is_some() {
                        let line = std::mem::take(&mut self.line);
                        let line = line.strip_suffix(b"\r\n").ok_or("a bare line feed")?;
                        let line = std::str::from_utf8(line).map_err(|error| error.to_string())?;
                        self.place = self.line(line)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The connection was ended in order.
    pub(super) fn finished(&mut self) {
        if self.place == WirePosition::Rest {
            self.last().whole = true;
        }
    }

    fn end(&mut self) -> WirePosition {
        self.last().whole = true;
        WirePosition::Head
    }

    fn line(&mut self, line: &str) -> Result<WirePosition, String> {
        match self.place {
            WirePosition::Size => {
                let size = usize::from_str_radix(line, 16).map_err(|_| format!("size {line:?}"))?;
                if size == 0 {
                    return Ok(WirePosition::Trailers);
                }
                Ok(WirePosition::Chunk(size))
            }
            WirePosition::ChunkEnd if line.is_empty() => Ok(WirePosition::Size),
            WirePosition::ChunkEnd => Err("no line end after a chunk".to_owned()),
            WirePosition::Trailers if line.is_empty() => Ok(self.end()),
            WirePosition::Trailers => {
                let field = split_field(line)?;
                self.last().trailers.push(field);
                Ok(WirePosition::Trailers)
            }
            _ if line.is_empty() => self.head(),
            _ => {
                self.head.push(line.to_owned());
                Ok(WirePosition::Head)
            }
        }
    }

    fn head(&mut self) -> Result<WirePosition, String> {
        let mut lines = std::mem::take(&mut self.head).into_iter();
        let start = lines.next().ok_or("an empty head")?;
        let fields: Vec<_> = lines
            .map(|line| split_field(&line))
            .collect::<Result<_, _>>()?;
        for (at, (name, _)) in fields.iter().enumerate() {
            let twice = |(other, _): &(String, String)| other.eq_ignore_ascii_case(name);
            if fields[at + 1..].iter().any(twice) {
                return Err(format!("{name} twice: {start} {fields:?}"));
            }
        }
        let mut message = WireMessage {
            start,
            fields,
            framing: WireFraming::None,
            body: Vec::new(),
            trailers: Vec::new(),
            whole: false,
        };
        let status = message.status();
        let bodiless = message.is_interim()
            || matches!(status, 204 | 304)
            || self.methods.as_ref().is_some_and(|methods| {
                status > 0
                    && methods
                        .get(self.finals)
                        .is_some_and(|method| *method == "HEAD")
            });
        let length = message.field("content-length").map(str::to_owned);
        let coding = message.field("transfer-encoding").map(str::to_owned);
        if length.is_some() && coding.is_some() {
            return Err(format!("two framings: {message:?}"));
        }
        let switches = status == 101 || status == 0 && message.field("upgrade").is_some();
        let place = match (length, coding) {
            _ if switches => {
                message.framing = WireFraming::Tunnel;
                WirePosition::Rest
            }
            _ if bodiless => WirePosition::Head,
            (Some(length), _) => {
                message.framing = WireFraming::Length;
                let length = length.parse().map_err(|_| format!("length {length:?}"))?;
                if length == 0 {
                    WirePosition::Head
                } else {
                    WirePosition::Data(length)
                }
            }
            (None, Some(coding)) if coding == "chunked" => {
                message.framing = WireFraming::Chunked;
                WirePosition::Size
            }
            (None, Some(coding)) => return Err(format!("coding {coding:?}")),
            (None, None) if status > 0 => {
                message.framing = WireFraming::UntilClose;
                WirePosition::Rest
            }
            (None, None) => WirePosition::Head,
        };
        message.whole = place == WirePosition::Head;
        if self.methods.is_some() {
            if status == 0 {
                return Err(format!("not a response: {:?}", message.start));
            }
            self.finals += usize::from(!message.is_interim());
        } else if !message.start.ends_with(" HTTP/1.1") {
            return Err(format!("not a request: {:?}", message.start));
        }
        self.messages.push(message);
        Ok(place)
    }
}

fn split_field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(": ").ok_or(format!("field {line:?}"))?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|byte| byte < b' ') {
        return Err(format!("field {line:?}"));
    }
    Ok((name.to_owned(), value.to_owned()))
}
