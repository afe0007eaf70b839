#!/usr/bin/env python3
"""Resident memory per idle connection: HTTP/1.1 and HTTP/2, in the clear and over TLS 1.3.

    tests/soak/memory.py [--connections 4000] [--requests 50] [--only KIND] [--balancer PATH]      (needs openssl)

Each kind gets a daemon of its own. What it has grown by per connection is looked at three times: when every connection has
carried one request and is idle, when each has carried --requests of them and is idle again, and when all were closed and as
many new ones were opened. Growth is counted after the first few connections of the kind were closed, so that memory which a
thread holds once is not counted for each connection.
"""
import pathlib
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

from common import Daemon, Verdict, arguments, free_port, parse, wait_for

# KiB that a connection of each kind may cost. docs/soak-tests.md says what those of HTTP/2 are made of.
LIMITS = {"http1": 2, "https1": 8, "h2c": 5, "h2": 9}
# What is counted only after this number of looks in a row, 200 ms apart, that saw the same.
RESTS = 8
WARM = 64
BODY = "idle connections should be cheap"
# As a browser sends them.
FIELDS = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "accept-language": "en-GB,en;q=0.5",
    "accept-encoding": "gzip, deflate, br, zstd",
    "cookie": "session=0f4c7f1de0a94d2b8a3d6e5c",
}
# The request is answered by the daemon itself: what is looked at is the client's side.
CONFIG = """
listeners:
  plain: {{bind: "127.0.0.1:{plain}", timeouts: {{keepalive: 1h}}}}
  secure: {{bind: "127.0.0.1:{secure}", timeouts: {{keepalive: 1h}}, tls: {{cert: {path}/server.pem, key: {path}/server.key}}}}
routes:
  - {{path: /, respond: {{status: 200, body: "{body}"}}}}
"""


class Http1:
    """A connection that speaks HTTP/1.1."""

    REQUEST = "".join(
        ["GET / HTTP/1.1\r\nHost: localhost\r\n", *(f"{name}: {value}\r\n" for name, value in FIELDS.items()), "\r\n"]
    ).encode()

    def __init__(self, stream):
        self.stream = stream

    def ask(self):
        self.stream.sendall(self.REQUEST)
        answer = b""
        while not answer.endswith(BODY.encode()):
            part = self.stream.recv(4096)
            if not part:
                sys.exit(f"closed after {answer!r}")
            answer += part
        if not answer.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"answered {answer!r}")


def field(name, value):
    """Literal with incremental indexing and a new name, RFC 7541 section 6.2.1, without Huffman."""
    return bytes([0x40, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Http2:
    """A connection that speaks HTTP/2: just enough of it to ask one thing after the other."""

    DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
    ACK = END_STREAM = 1
    # :method GET, :scheme, :path / and, as in RFC 7541 appendix C.4.1, www.example.com with Huffman: the first entry of the table.
    FIRST = bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff") + b"".join(field(*item) for item in FIELDS.items())
    # The same from the table, RFC 7541 section 6.1: the newest entry is 62.
    LATER = b"\x82\x86\x84" + bytes(0x80 | 62 + place for place in reversed(range(len(FIELDS) + 1)))

    def __init__(self, stream):
        self.stream, self.unread, self.next = stream, b"", 1
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(self.SETTINGS, 0, 0))

    @staticmethod
    def frame(kind, flags, number, payload=b""):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", number) + payload

    def read(self):
        """The next frame as kind, flags, stream and payload."""
        while True:
            if len(self.unread) >= 9:
                size = 9 + int.from_bytes(self.unread[:3], "big")
                if len(self.unread) >= size:
                    frame, self.unread = self.unread[:size], self.unread[size:]
                    return frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:]
            part = self.stream.recv(16384)
            if not part:
                sys.exit("closed by the daemon")
            self.unread += part

    def ask(self):
        block = self.FIRST if self.next == 1 else self.LATER
        # END_STREAM and END_HEADERS.
        self.stream.sendall(self.frame(self.HEADERS, 5, self.next, block))
        body, ended = b"", False
        while not ended:
            kind, flags, number, payload = self.read()
            if kind == self.SETTINGS and not flags & self.ACK:
                self.stream.sendall(self.frame(self.SETTINGS, self.ACK, 0))
            if kind in (self.RST_STREAM, self.GOAWAY):
                sys.exit(f"frame {kind}: {payload!r}")
            if number == self.next:
                body += payload if kind == self.DATA else b""
                ended = kind in (self.DATA, self.HEADERS) and flags & self.END_STREAM
        if body != BODY.encode():
            sys.exit(f"answered {body!r}")
        self.next += 2


KINDS = {"http1": (Http1, None), "https1": (Http1, "http/1.1"), "h2c": (Http2, None), "h2": (Http2, "h2")}


def certificate(path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(path / "server.key"), "-out", str(path / "server.pem")],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def resident(daemon):
    """(resident KiB, of which not of a file), when they are stable: memory is given back with a delay."""
    before, same = None, 0
    while same < RESTS:
        time.sleep(0.2)
        rollup = open(f"/proc/{daemon.process.pid}/smaps_rollup").read().splitlines()
        anonymous = sum(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))
        now = (daemon.memory(), anonymous)
        same = same + 1 if now == before else 0
        before = now
    return before


class Kind:
    """Connections of one kind to a daemon of its own."""

    def __init__(self, name, path):
        self.speaks, alpn = KINDS[name]
        ports = {"plain": free_port(), "secure": free_port()}
        self.port = ports["secure" if alpn else "plain"]
        self.context = None
        if alpn:
            self.context = ssl.create_default_context(cafile=path / "server.pem")
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
            self.context.set_alpn_protocols([alpn])
        self.daemon = Daemon(CONFIG.format(**ports, path=path, body=BODY))

    def open(self, count):
        """`count` connections, each of which has carried one request."""
        return [self.one() for _ in range(count)]

    def one(self):
        stream = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context:
            stream = self.context.wrap_socket(stream, server_hostname="localhost")
        connection = self.speaks(stream)
        connection.ask()
        return connection

    def close(self, connections):
        for connection in connections:
            connection.stream.close()
        connections.clear()
        wait_for("all are closed", lambda: self.daemon.sum("balancer_listener_connections_active") == 0)


def measure(name, options, path, verdict):
    kind = Kind(name, path)
    warm = kind.open(WARM)
    for connection in warm:
        connection.ask()
    kind.close(warm)
    start = resident(kind.daemon)

    def look(what):
        rss, anonymous = ((now - then) / options.connections for now, then in zip(resident(kind.daemon), start))
        figures = f"{rss:.2f} KiB each, of which anonymous {anonymous:.2f} KiB"
        verdict.check(f"{name}: at most {LIMITS[name]} KiB {what}", rss <= LIMITS[name], figures)

    connections = kind.open(options.connections)
    look("after one request")
    for _ in range(options.requests - 1):
        for connection in connections:
            connection.ask()
    look(f"after {options.requests} requests")
    kind.close(connections)
    rss, anonymous = (now - then for now, then in zip(resident(kind.daemon), start))
    print(f"     {name}: {rss} KiB more than before when all are closed, of which anonymous {anonymous} KiB")
    connections = kind.open(options.connections)
    look("on new connections")
    kind.close(connections)
    verdict.check(f"{name}: ends in order", kind.daemon.end() == 0)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--requests", type=int, default=50, help="on each connection")
    parser.add_argument("--only", choices=KINDS)
    options = parse(parser)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.connections < 1000:
        sys.exit("balancer gives nothing back for fewer than 1,000 connections")
    if most < options.connections + 200:
        sys.exit(f"{most} open files are too few for {options.connections} connections")
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="balancer-proof-") as directory:
        path = pathlib.Path(directory)
        certificate(path)
        for name in [options.only] if options.only else KINDS:
            measure(name, options, path, verdict)
    verdict.end()


if __name__ == "__main__":
    main()
