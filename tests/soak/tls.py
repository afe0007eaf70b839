#!/usr/bin/env python3
"""Certificates replaced 20 times under full handshakes, then testssl.sh against the default configuration.

    tests/soak/tls.py [RELOADS] [--balancer PATH]      (default 20)

Needs openssl; the second part is left out, and says so, where testssl.sh is not installed.
"""
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import common
from common import Backend, Daemon, Verdict, free_port, wait_for

parser = common.arguments(__doc__)
parser.add_argument("reloads", nargs="?", type=int, default=20, metavar="RELOADS")
RELOADS = common.parse(parser).reloads
THREADS = 4
# Of the first certificate: as long as real ones are.
SERIAL = 1 << 125

# What testssl.sh finds that is not about the server's TLS, and why.
IGNORED = {
    "cert_revocation": "the authority of the proof has no revocation list and no OCSP responder",
    "HSTS": "a matter of response_headers, not of TLS",
    "security_headers": "the same",
}


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def authority(path):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "90",
            "-subj", "/CN=authority of the proof", "-keyout", str(path / "ca.key"), "-out", str(path / "ca.pem"))


def certificate(path, number):
    """A certificate for localhost; it and its key are replaced in one step, being one file."""
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
            "-keyout", str(path / "new.key"), "-out", str(path / "new.csr"))
    (path / "new.ext").write_text(
        "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
        "keyUsage=digitalSignature\n")
    openssl("x509", "-req", "-in", str(path / "new.csr"), "-CA", str(path / "ca.pem"), "-CAkey", str(path / "ca.key"),
            "-set_serial", str(SERIAL + number), "-days", "90", "-sha256", "-extfile", str(path / "new.ext"),
            "-out", str(path / "new.pem"))
    both = (path / "new.pem").read_text() + (path / "ca.pem").read_text() + (path / "new.key").read_text()
    (path / "fresh.pem").write_text(both)
    os.replace(path / "fresh.pem", path / "server.pem")


class Handshakes:
    """Full handshakes with a request each, from several threads, until it is stopped."""

    def __init__(self, port, ca):
        self.port, self.ca = port, ca
        self.done, self.failures, self.serials = 0, [], set()
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def one(self):
        # A context of its own: no session of another connection is taken up.
        context = ssl.create_default_context(cafile=self.ca)
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as stream:
                stream.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b""
                while part := stream.recv(65536):
                    answer += part
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"answer {answer[:60]!r}")
                return stream.getpeercert()["serialNumber"]

    def run(self):
        while not self.stopped.is_set():
            try:
                serial = self.one()
                with self.lock:
                    self.done += 1
                    self.serials.add(int(serial, 16))
            except Exception as error:  # any error breaks the promise
                with self.lock:
                    self.failures.append(repr(error))

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def replace_under_load(verdict, daemon, port):
    load = Handshakes(port, str(daemon.path / "ca.pem"))
    for number in range(1, RELOADS + 1):
        certificate(daemon.path, number)
        daemon.hangup()
        wait_for(f"certificate {number} is shown", lambda: SERIAL + number in load.serials)
    load.stop()
    verdict.check("no handshake fails while certificates are replaced", not load.failures,
                  f"{load.done} full handshakes, {RELOADS} reloads, {len(load.failures)} failed {load.failures[:3]}")
    verdict.check("every certificate is shown", len(load.serials) >= RELOADS, len(load.serials))


def audit(verdict, daemon, port):
    program = shutil.which("testssl.sh") or shutil.which("testssl")
    if not program:
        print("left out: testssl.sh is not installed (apt-get install testssl.sh)")
        return
    report = daemon.path / "testssl.json"
    subprocess.run([program, "--quiet", "--color", "0", "--warnings", "off", "--nodns", "min", "--ip", "127.0.0.1",
                    "--add-ca", str(daemon.path / "ca.pem"), "--jsonfile", str(report), f"https://localhost:{port}/"],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1800, check=False)
    findings = json.loads(report.read_text())
    looked = [one for one in findings if one["severity"] in ("OK", "INFO")]
    bad = [one for one in findings if one["severity"] not in ("OK", "INFO", "DEBUG")]
    for one in bad:
        reason = IGNORED.get(one["id"].split(" ")[0])
        print(f"  {one['severity']:8} {one['id']}: {one['finding'][:110]}" + (f"  [ignored: {reason}]" if reason else ""))
    serious = [one["id"] for one in bad
               if one["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
               and one["id"].split(" ")[0] not in IGNORED]
    verdict.check("testssl.sh ran to its end", len(looked) > 50, f"{len(findings)} findings")
    verdict.check("none of them above low concerns the server", not serious, serious)


def main():
    verdict = Verdict()
    backend = Backend()
    port = free_port()
    daemon = Daemon("listeners:\n  web: {bind: \"127.0.0.1:%d\", redirect: https}\n" % port)
    authority(daemon.path)
    certificate(daemon.path, 0)
    pem = daemon.path / "server.pem"
    daemon.write(
        f'listeners:\n  web: {{bind: "127.0.0.1:{port}", tls: {{cert: "{pem}", key: "{pem}"}}, pool: app}}\n'
        f"pools:\n  app: {{backends: [127.0.0.1:{backend.port}]}}\n")
    daemon.hangup()
    context = ssl.create_default_context(cafile=str(daemon.path / "ca.pem"))

    def speaks_tls():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
                with context.wrap_socket(plain, server_hostname="localhost"):
                    return True
        except (OSError, ssl.SSLError):
            return False

    wait_for("the listener speaks TLS", speaks_tls)
    began = time.monotonic()
    replace_under_load(verdict, daemon, port)
    print(f"  took {time.monotonic() - began:.1f} s")
    audit(verdict, daemon, port)
    verdict.check("the end is orderly", daemon.end() == 0)
    backend.kill()
    verdict.end()


main()
