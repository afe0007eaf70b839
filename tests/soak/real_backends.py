#!/usr/bin/env python3
"""Real servers behind it: nginx, Python's http.server and Node, with 1 GiB both ways, WebSocket, server-sent events, TCP.

    tests/soak/real_backends.py [MIB] [--balancer PATH]      (default 1024; needs nginx and node)
"""
import base64
import hashlib
import http.client
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import common
from common import Daemon, Verdict, free_port, wait_for

parser = common.arguments(__doc__)
parser.add_argument("mib", type=int, nargs="?", default=1024)
MIB = common.parse(parser).mib
BLOCK = os.urandom(1 << 20)

NODE = r"""
const http = require('http'), crypto = require('crypto');
const server = http.createServer((request, response) => {
  if (request.url === '/upload') {
    const hash = crypto.createHash('sha256');
    request.on('data', (part) => hash.update(part));
    request.on('end', () => response.end(hash.digest('hex')));
  } else if (request.url === '/events') {
    response.writeHead(200, {'Content-Type': 'text/event-stream'});
    let number = 0;
    const timer = setInterval(() => {
      response.write(`data: ${++number} ${Date.now()}\n\n`);
      if (number === 5) { clearInterval(timer); response.end(); }
    }, 200);
  } else response.end('node');
});
server.on('upgrade', (request, socket, head) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  let waiting = head;
  const echo = (data) => {
    waiting = Buffer.concat([waiting, data]);
    while (waiting.length >= 6 && waiting.length >= 6 + (waiting[1] & 127)) {
      const length = waiting[1] & 127, mask = waiting.subarray(2, 6), text = Buffer.from(waiting.subarray(6, 6 + length));
      text.forEach((byte, at) => { text[at] = byte ^ mask[at % 4]; });
      socket.write(Buffer.concat([Buffer.from([waiting[0], length]), text]));
      waiting = waiting.subarray(6 + length);
    }
  };
  socket.on('data', echo);
  echo(Buffer.alloc(0));
});
server.listen(Number(process.argv[2]), '127.0.0.1');
"""


def get(port, path, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host})
    return connection.getresponse()


def digest_of(response):
    digest, length = hashlib.sha256(), 0
    while part := response.read(1 << 20):
        digest.update(part)
        length += len(part)
    return digest.hexdigest(), length


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def websocket(port):
    """Shakes hands, sends 100 masked text frames, and reads them back: the answers that were right."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=20)
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(
        f"GET /echo HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    answer = stream.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += answer.readline()
    magic = key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(magic.encode()).digest())
    right = 0
    if b" 101 " in head and accept in head:
        for number in range(100):
            text, mask = f"message {number}".encode(), os.urandom(4)
            masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
            stream.sendall(bytes([0x81, 0x80 | len(text)]) + mask + masked)
            right += answer.read(2 + len(text)) == bytes([0x81, len(text)]) + text
    stream.close()
    return right


def main():
    verdict = Verdict()
    directory = tempfile.TemporaryDirectory(prefix="balancer-proof-")
    root = pathlib.Path(directory.name)
    root.chmod(0o755)
    (root / "www").mkdir()
    (root / "www" / "index.html").write_text("static")
    digest = hashlib.sha256()
    with open(root / "www" / "large", "wb") as large:
        for number in range(MIB):
            block = number.to_bytes(8, "big") + BLOCK[8:]
            digest.update(block)
            large.write(block)
    nginx, plain, node, web, raw = (free_port() for _ in range(5))
    (root / "nginx.conf").write_text(
        f"daemon off; pid {root}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{nginx}; root {root}/www; }} }}\n")
    (root / "server.js").write_text(NODE)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    servers = [
        subprocess.Popen(["nginx", "-c", str(root / "nginx.conf")], **quiet),
        subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(root / "www"), str(plain)], **quiet),
        subprocess.Popen(["node", str(root / "server.js"), str(node)], **quiet),
    ]
    for port in (nginx, plain, node):
        wait_for(f"a server on port {port}", lambda: listens(port))
    pools = "".join(f"  {name}:\n    backends: [127.0.0.1:{port}]\n"
                    for name, port in (("nginx", nginx), ("python", plain), ("node", node)))
    daemon = Daemon(
        f'listeners:\n  web: {{bind: "127.0.0.1:{web}", pool: nginx}}\n'
        f'  raw: {{bind: "127.0.0.1:{raw}", protocol: tcp, pool: nginx}}\n'
        "routes:\n  - {host: python, pool: python}\n  - {host: node, pool: node}\n"
        f"pools:\n{pools}")
    wait_for("all are up", lambda: daemon.sum("balancer_backend_up") == 3)
    memory = daemon.memory()
    for host, path, wanted in (("nginx", "/", b"static"), ("python", "/", b"static"), ("node", "/", b"node")):
        response = get(web, path, host)
        verdict.check(f"GET from {host}", response.status == 200 and response.read() == wanted)
    for host in ("nginx", "python"):
        began, cpu = time.monotonic(), daemon.cpu()
        found, length = digest_of(get(web, "/large", host))
        verdict.check(f"{MIB} MiB down from {host}", (found, length) == (digest.hexdigest(), MIB << 20),
                      f"{time.monotonic() - began:.1f} s, {daemon.cpu() - cpu:.2f} s of our processor time")
    for name, headers in (("by length", {"Content-Length": str(MIB << 20)}), ("chunked", {"Transfer-Encoding": "chunked"})):
        began, cpu = time.monotonic(), daemon.cpu()
        connection = http.client.HTTPConnection("127.0.0.1", web, timeout=120)
        with open(root / "www" / "large", "rb") as large:
            parts = iter(lambda: large.read(1 << 18), b"")
            connection.request("POST", "/upload", body=parts, headers={"Host": "node", **headers},
                               encode_chunked="Transfer-Encoding" in headers)
            found = connection.getresponse().read().decode()
        verdict.check(f"{MIB} MiB up to node, {name}", found == digest.hexdigest(),
                      f"{time.monotonic() - began:.1f} s, {daemon.cpu() - cpu:.2f} s of our processor time")
    began, cpu = time.monotonic(), daemon.cpu()
    found, length = digest_of(get(raw, "/large", "any"))
    verdict.check(f"{MIB} MiB down by the tcp listener", (found, length) == (digest.hexdigest(), MIB << 20),
                  f"{time.monotonic() - began:.1f} s, {daemon.cpu() - cpu:.2f} s of our processor time")
    right = websocket(web)
    verdict.check("WebSocket echo", right == 100, f"{right} of 100 messages")
    events = get(web, "/events", "node")
    late = []
    while line := events.readline():
        if line.startswith(b"data:"):
            late.append(time.time() * 1000 - int(line.split()[2]))
    verdict.check("events are not held back", len(late) == 5 and max(late) < 100,
                  f"{len(late)} events, at most {max(late, default=0):.0f} ms late")
    verdict.check("memory stays bounded", daemon.memory() - memory < 16 << 10, f"{memory} KiB before, {daemon.memory()} KiB after")
    verdict.check("the end is orderly", daemon.end() == 0)
    for server in servers:
        server.terminate()
        server.wait()
    directory.cleanup()
    verdict.end()


main()
