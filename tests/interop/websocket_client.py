"""`websockets` through balancer: websocket_client.py FRONT CA"""
import asyncio
import os
import ssl
import sys

import websockets
from websockets.asyncio.client import connect

FRONT, CA = sys.argv[1:]
MESSAGES = ["", "word", "ü" * 1000, b"", b"\x00\xff" * 3, os.urandom(1 << 20), "a" * (1 << 20)]


async def parts():
    for number in range(5):
        yield f"part {number} "
        await asyncio.sleep(0)


async def talk(compression):
    trust = ssl.create_default_context(cafile=CA) if FRONT.startswith("wss") else None
    # Without anything from the surroundings: no proxy.
    async with connect(FRONT, ssl=trust, proxy=None, subprotocols=["echo"], compression=compression,
                       max_size=None, open_timeout=30) as connection:
        assert connection.subprotocol == "echo"
        for message in MESSAGES:
            await connection.send(message)
            assert await connection.recv() == message, len(message)
        # One message in five frames.
        await connection.send(parts())
        assert await connection.recv() == "".join([part async for part in parts()])
        await asyncio.wait_for(await connection.ping(), 30)
        await connection.send("bye")
        await connection.wait_closed()
        assert (connection.close_code, connection.close_reason) == (4001, "as you wish"), connection.close_code


async def main():
    await talk("deflate")
    await asyncio.gather(*(talk(None) for _ in range(10)))
    print(f"websockets {websockets.__version__}: to {FRONT}")


asyncio.run(asyncio.wait_for(main(), 45))
