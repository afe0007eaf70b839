//! Parses the messages that a peer receives. An independent parser, so that a bug of ours is not
//! hidden by the same bug here. Accepts only messages that balancer may send; anything else fails
//! the run.

/// Framing of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireFraming {
    None,
    Length,
    Chunked,
    UntilClose,
    /// The bytes after a switch of protocols.
    Tunnel,
}

/// A message, complete or not.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct WireMessage {
    pub start: String,
    pub fields: Vec<(String, String)>,
    pub framing: WireFraming,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Its end was received.
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

    /// Status of a response; 0 for a request.
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
    /// Methods of the requests, for a reader of responses.
    methods: Option<Vec<&'static str>>,
    finals: usize,
    place: WirePosition,
    line: Vec<u8>,
    head: Vec<String>,
    pub messages: Vec<WireMessage>,
    /// Bytes received.
    pub bytes: usize,
}

impl WireReader {
    pub(super) fn of_requests() -> Self {
        Self::new(None)
    }

    /// A reader of responses to requests with these methods.
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

    /// Final responses, complete or not.
    pub(super) fn finals(&self) -> impl Iterator<Item = &WireMessage> {
        self.messages.iter().filter(|message| !message.is_interim())
    }

    /// Count of complete final responses.
    pub(super) fn whole_finals(&self) -> usize {
        self.finals().filter(|message| message.whole).count()
    }

    /// True if a head was received in part.
    pub(super) fn is_in_head(&self) -> bool {
        self.place == WirePosition::Head && (!self.line.is_empty() || !self.head.is_empty())
    }

    /// Ends the request at its head: its backend does not switch protocols.
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

    /// Takes the end of the connection.
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

    /// Takes the lines of a head; gives the position behind it.
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
        let position = self.frame(&mut message)?;
        message.whole = position == WirePosition::Head;
        if self.methods.is_some() {
            if message.status() == 0 {
                return Err(format!("not a response: {:?}", message.start));
            }
            self.finals += usize::from(!message.is_interim());
        } else if !message.start.ends_with(" HTTP/1.1") {
            return Err(format!("not a request: {:?}", message.start));
        }
        self.messages.push(message);
        Ok(position)
    }

    /// True if a message of `status` has no body by the rules (RFC 9112 section 6.3).
    fn is_bodiless(&self, message: &WireMessage, status: u16) -> bool {
        let answers_head = || {
            let methods = self.methods.as_ref();
            methods.is_some_and(|methods| {
                status > 0
                    && methods
                        .get(self.finals)
                        .is_some_and(|method| *method == "HEAD")
            })
        };
        message.is_interim() || matches!(status, 204 | 304) || answers_head()
    }

    /// Sets the framing of `message` by its fields; gives the position behind its head.
    fn frame(&self, message: &mut WireMessage) -> Result<WirePosition, String> {
        let status = message.status();
        let length = message.field("content-length").map(str::to_owned);
        let coding = message.field("transfer-encoding").map(str::to_owned);
        if length.is_some() && coding.is_some() {
            return Err(format!("two framings: {message:?}"));
        }
        let switches = status == 101 || status == 0 && message.field("upgrade").is_some();
        let (framing, position) = match (length, coding) {
            _ if switches => (WireFraming::Tunnel, WirePosition::Rest),
            _ if self.is_bodiless(message, status) => (WireFraming::None, WirePosition::Head),
            (Some(length), _) => {
                let length = length.parse().map_err(|_| format!("length {length:?}"))?;
                let position = match length {
                    0 => WirePosition::Head,
                    _ => WirePosition::Data(length),
                };
                (WireFraming::Length, position)
            }
            (None, Some(coding)) if coding == "chunked" => {
                (WireFraming::Chunked, WirePosition::Size)
            }
            (None, Some(coding)) => return Err(format!("coding {coding:?}")),
            (None, None) if status > 0 => (WireFraming::UntilClose, WirePosition::Rest),
            (None, None) => (WireFraming::None, WirePosition::Head),
        };
        message.framing = framing;
        Ok(position)
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
