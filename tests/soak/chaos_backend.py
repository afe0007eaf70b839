"""A backend of chaos.py, in a process of its own: answers with bodies that follow from the request's id and length, and
does harm by seeded chance while its byte on the board says so.

    chaos_backend.py INDEX PORT SEED BOARD JOURNAL

The board is a file of 8 bytes per backend that all map: mode (0 healthy, 1 hostile), three spare, longest pause of the
event loop in milliseconds. The journal gets a line for every POST whose head arrived, and for every body that is wrong.
"""
import asyncio
import mmap
import os
import random
import socket
import struct
import sys
import time
import zlib

PLACE = 8
LARGEST = 1 << 20
BLOCK = random.Random(1).randbytes(3 << 20)

# What goes wrong before a byte of an answer that could be passed on, or behind its end: balancer can make all of it good
# for requests that may be sent again.
UNSEEN = (
    "reset", "close", "half_head_reset", "half_head_close", "garbage", "not_http", "bad_status", "two_lengths", "bad_field",
    "bad_first_chunk", "huge_head", "stall", "slow_head", "interim_flood", "unasked_101",
)
# Odd, but whole: the client gets the answer.
ODD = ("drip", "slow_but_in_time", "two_answers", "surplus", "interim", "idle_close", "idle_reset")
# In mid-body, when no retry can help: a visible cut.
TORN = ("tear_reset", "tear_close", "bad_chunk", "no_crlf", "stall_mid", "early")
SMALL = 8 << 10
# Responses without a request. Wherever a reader stops, if it is at a multiple of their size, the next byte begins one of them.
UNREQUESTED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Unrequested: 0123456789\r\n\r\n"
UNREQUESTED = UNREQUESTED.replace(b"0123456789", b"x" * (64 - len(UNREQUESTED) + 10))


def body_of(text, length):
    """The body that belongs to `text`: no two texts have the same."""
    at = zlib.crc32(text.encode()) % (2 << 20)
    return (text.encode() + b"|" + BLOCK[at:at + length])[:length]


def chunks_of(body, chance, last=True):
    """The body in chunks of random sizes."""
    parts, at = [], 0
    while at < len(body):
        size = min(len(body) - at, chance.choice((1, 17, 1000, 4096, 65536, 1 << 20)))
        parts += [b"%x\r\n" % size, body[at:at + size], b"\r\n"]
        at += size
    return b"".join(parts) + (b"0\r\n\r\n" if last else b"")


class Broken(Exception):
    """The connection is not to be used any more. `reset`: it ends with a RST."""

    def __init__(self, reset=False):
        super().__init__()
        self.reset = reset


class Request:
    """The head of a request and, once read, its body."""

    def __init__(self, head):
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
        _, self.kind, *rest = self.target.split("/")
        self.id, self.length = (rest[0], int(rest[1])) if len(rest) == 2 else ("", 0)

    async def read(self, reader):
        body = []
        if "content-length" in self.fields:
            body.append(await reader.readexactly(int(self.fields["content-length"])))
        elif self.fields.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body.append(await reader.readexactly(size))
                if await reader.readexactly(2) != b"\r\n":
                    return "chunk without its end"
            if await reader.readexactly(2) != b"\r\n":
                return "trailers that were not sent"
        whole = b"".join(body)
        if str(len(whole)) != self.fields["x-length"]:
            return f"{len(whole)} bytes instead of {self.fields['x-length']}"
        if str(zlib.crc32(whole)) != self.fields["x-sum"] or whole != body_of("q" + self.id, len(whole)):
            return "other bytes than were sent"
        return None


def linger(writer, reset):
    """How the connection ends from now on, even if the process is killed: with a RST, or with a FIN."""
    option = struct.pack("ii", int(reset), 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)


async def send(writer, request, parts, wait=lambda: 0):
    """Writes an answer. One that ends with the connection is whole only when all of it was taken: until then a kill has
    to show, or a part could not be told from the whole."""
    until_close = request.wants == "close"
    if until_close:
        linger(writer, True)
    for part in parts:
        writer.write(part)
        await writer.drain()
        if pause := wait():
            await asyncio.sleep(pause)
    while until_close and writer.transport.get_write_buffer_size() > 0:
        await asyncio.sleep(0.001)
    if until_close:
        linger(writer, False)
        raise Broken


class Backend:
    def __init__(self, index, seed, board, journal):
        self.index = index
        self.chance = random.Random(seed)
        self.board = board
        self.journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def is_hostile(self):
        return self.board[self.index * PLACE] == 1

    def note(self, line):
        os.write(self.journal, f"{line}\n".encode())

    async def watch_pauses(self):
        """Notes how long this process could not run."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            pause = int((time.monotonic() - before) * 1000) - 20
            at = self.index * PLACE + 4
            if pause > struct.unpack_from("<I", self.board, at)[0]:
                struct.pack_into("<I", self.board, at, pause)

    async def serve(self, reader, writer):
        reset = False
        try:
            while await self.exchange(reader, writer):
                pass
        except Broken as broken:
            reset = broken.reset
        except (OSError, asyncio.IncompleteReadError):
            pass
        if reset:
            linger(writer, True)
            writer.transport.abort()
        else:
            writer.close()

    async def exchange(self, reader, writer):
        request = Request(await reader.readuntil(b"\r\n\r\n"))
        hostile = self.is_hostile()
        if request.kind == "health":
            well = not (hostile and self.chance.random() < 0.2)
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"200 OK" if well else b"503 Sick"))
            return True
        if request.method == "POST":
            self.note(f"post {request.id}")
        fault = None
        if hostile and self.chance.random() < 0.3:
            faults = UNSEEN + ODD + (TORN * 2 if request.kind == "torn" else ())
            fault = self.chance.choice(faults)
            # To HEAD it is no chunk at all.
            fault = "bad_status" if fault == "bad_first_chunk" and request.method == "HEAD" else fault
        elif self.chance.random() < 0.01:
            fault = "idle_close"
        if fault == "early":
            await send(writer, request, [b"".join(self.answer(request))])
            raise Broken
        if fault in UNSEEN and self.chance.random() < 0.3:
            await self.harm(fault, request, writer)
        wrong = await request.read(reader)
        if wrong:
            self.note(f"wrong {request.id} {wrong}")
        if fault is None:
            await send(writer, request, [b"".join(self.answer(request))])
            return True
        await self.harm(fault, request, writer)
        return True

    def answer(self, request, other=None):
        """Head and encoded body of the right answer; of that to the request `other`, to do harm."""
        name = other or request.id
        body = body_of("a" + name, request.length)
        request.wants = wants = request.fields["x-want"]
        head = (f"HTTP/1.1 200 OK\r\nX-Id: {name}\r\nX-Backend: {self.index}\r\nX-Sum: {zlib.crc32(body)}\r\n")
        if wants == "length":
            head += f"Content-Length: {len(body)}\r\n\r\n"
        elif wants == "chunked":
            head += "Transfer-Encoding: chunked\r\n\r\n"
        else:
            head += "Connection: close\r\n\r\n"
        if request.method == "HEAD":
            return head.encode(), b""
        return head.encode(), chunks_of(body, self.chance) if wants == "chunked" else body

    async def harm(self, fault, request, writer):
        head, body = self.answer(request)
        if fault in UNSEEN:
            await self.harm_unseen(fault, head, writer)
        elif fault in ODD:
            await self.harm_oddly(fault, request, head, body, writer)
        else:
            await self.harm_body(fault, request, head, body, writer)

    async def harm_unseen(self, fault, head, writer):
        whole = {
            "garbage": self.chance.randbytes(self.chance.randint(1, 5000)),
            "not_http": b"SSH-2.0-backend\r\n220 ready\r\n\r\n",
            "bad_status": b"HTTP/1.1 20x Maybe\r\nContent-Length: 0\r\n\r\n",
            "two_lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
            "bad_field": b"HTTP/1.1 200 OK\r\nX Y: z\r\nContent-Length: 1\r\n\r\na",
            "bad_first_chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n",
            "huge_head": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
            "interim_flood": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 40,
            "unasked_101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nraw",
        }
        if fault in whole:
            writer.write(whole[fault])
            await writer.drain()
            await asyncio.sleep(self.chance.choice((0, 0.05)))
            raise Broken
        if fault.startswith("half_head"):
            writer.write(head[:self.chance.randint(1, len(head) - 1)])
            await asyncio.sleep(self.chance.choice((0, 0.01)))
        elif fault == "stall":
            await asyncio.sleep(self.chance.uniform(1, 5))
        elif fault == "slow_head":
            for at in range(len(head) - 1):
                writer.write(head[at:at + 1])
                await asyncio.sleep(0.05)
        raise Broken(reset=fault.endswith("reset"))

    async def harm_oddly(self, fault, request, head, body, writer):
        chance = self.chance
        wait = lambda: 0
        parts = [head + body]
        if fault == "interim":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        elif fault == "slow_but_in_time":
            parts = [head[at:at + 20] for at in range(0, len(head), 20)] + [body]
            wait = lambda: 0.01
        elif fault == "drip":
            count, whole = chance.randint(2, 12), head + body
            parts = [whole[len(whole) * part // count:len(whole) * (part + 1) // count] for part in range(count)]
            wait = lambda: chance.uniform(0.001, 0.03)
        extra = b""
        # What comes late on a connection that is in use again cannot be told from an answer by anybody: both in one send.
        if fault in ("two_answers", "surplus") and len(body) <= SMALL and request.wants != "close":
            if fault == "two_answers" and chance.random() < 0.5:
                # More than one read takes, and no more than one send gives.
                before = len(head) + len(body)
                extra = b" " * (-before % len(UNREQUESTED)) + UNREQUESTED * ((30_000 - before) // len(UNREQUESTED))
            elif fault == "two_answers":
                extra = b"".join(self.answer(request, other="poison"))[:SMALL]
            else:
                extra = chance.choice((b"\r\n", b"0\r\n\r\n", b"surplus", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
            if request.method == "HEAD" and chance.random() < 0.5:
                extra = body_of("poison", 100)
        await send(writer, request, [*parts[:-1], parts[-1] + extra], wait)
        if fault.startswith("idle"):
            await asyncio.sleep(chance.choice((0, 0.0005, 0.002, 0.02)))
            raise Broken(reset=fault == "idle_reset")

    async def harm_body(self, fault, request, head, body, writer):
        if request.method == "HEAD" or len(body) < 2:
            await send(writer, request, [head + body])
            raise Broken
        # A body that ends with its connection has to be torn by a reset, or it would look whole.
        until_close = request.wants == "close"
        if until_close:
            linger(writer, True)
        part = body[:self.chance.randint(1, len(body) - 1)]
        if request.wants == "chunked" and fault in ("bad_chunk", "no_crlf"):
            part = chunks_of(body_of("a" + request.id, request.length // 2), self.chance, last=False)
            part += b"zz\r\n" if fault == "bad_chunk" else b"5\r\nabcdeX\r\n0\r\n\r\n"
        writer.write(head + part)
        await writer.drain()
        await asyncio.sleep(self.chance.choice((0, 0.01, 0.1)))
        if fault == "stall_mid":
            await asyncio.sleep(self.chance.uniform(2, 4))
        raise Broken(reset=fault == "tear_reset" or until_close)


async def main():
    index, port, seed, board_path, journal = sys.argv[1:]
    with open(board_path, "r+b") as file:
        board = mmap.mmap(file.fileno(), 0)
    backend = Backend(int(index), seed, board, journal)
    server = await asyncio.start_server(backend.serve, "127.0.0.1", int(port), backlog=1024, limit=2 * LARGEST)
    watch = asyncio.create_task(backend.watch_pauses())
    await server.serve_forever()
    await watch


if __name__ == "__main__":
    asyncio.run(main())
