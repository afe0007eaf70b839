"""httpx through balancer: client.py HTTP/1.1|HTTP/2 FRONT CA"""
import asyncio
import hashlib
import ssl
import sys

import h2
import httpx

VERSION, FRONT, CA = sys.argv[1:]
SIZE = 4 << 20
BLOCK = bytes(range(256)) * 256


async def blocks():
    for _ in range(SIZE // len(BLOCK)):
        yield BLOCK
        await asyncio.sleep(0)


async def together(client):
    """Eight that are answered when all are there: on one connection in HTTP/2, on eight in HTTP/1.1."""
    answers = await asyncio.gather(*(client.get("/together") for _ in range(8)))
    for answer in answers:
        assert (answer.http_version, answer.status_code, answer.text) == (VERSION, 200, "together"), answer


async def upload(client):
    wanted = hashlib.sha256(BLOCK * (SIZE // len(BLOCK))).hexdigest()
    for content in (blocks(), BLOCK * (SIZE // len(BLOCK))):
        answer = await client.post("/sha256", content=content)
        assert (answer.http_version, answer.text) == (VERSION, wanted), answer.text


async def download(client, path):
    digest, length = hashlib.sha256(), 0
    async with client.stream("GET", f"/{path}/{SIZE}") as answer:
        assert answer.http_version == VERSION, answer
        async for part in answer.aiter_raw():
            digest.update(part)
            length += len(part)
    # httpx does not show trailers.
    assert length == SIZE and answer.headers.get("x-sha256", digest.hexdigest()) == digest.hexdigest(), answer.headers


async def main():
    trust = ssl.create_default_context(cafile=CA)
    http2 = VERSION == "HTTP/2"
    async with httpx.AsyncClient(
            base_url=FRONT, verify=trust, http1=not http2, http2=http2, timeout=30, trust_env=False) as client:
        await together(client)
        # In HTTP/2 all of it at once, over the connection that is there.
        work = upload(client), download(client, "bytes"), download(client, "chunks")
        await asyncio.gather(*work)
        answer = await client.head(f"/bytes/{SIZE}")
        assert answer.headers["content-length"] == str(SIZE) and not answer.content, answer.headers
    print(f"httpx {httpx.__version__}, h2 {h2.__version__}, Python {sys.version.split()[0]}: {VERSION} to {FRONT}")


asyncio.run(main())
