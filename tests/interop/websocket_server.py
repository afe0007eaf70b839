"""A WebSocket server for websocket_client.py: prints its port."""
import asyncio

from websockets.asyncio.server import serve


async def talk(connection):
    """Gives every message back; `bye` ends it with a code of its own."""
    async for message in connection:
        if message == "bye":
            await connection.close(4001, "as you wish")
            return
        await connection.send(message)


async def main():
    async with serve(talk, "127.0.0.1", 0, subprotocols=["echo"], max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
