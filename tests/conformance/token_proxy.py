"""Adds a bearer token to every request on its way to a gateway, for clients that cannot; it changes nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65_536


@asynccontextmanager
async def token_proxy(origin: str, token: str) -> AsyncIterator[str]:
    """The origin of a proxy on the loopback before `origin`, while the block lasts.

    Where a request names the proxy as its host or origin it goes on as one to the gateway; any other name stays.
    """
    upstream = origin.removeprefix("http://")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            host, _, port = upstream.rpartition(":")
            answer, request = await asyncio.open_connection(host, int(port))
            request.write(_with_token(head, own, upstream, token))
            there = asyncio.create_task(_pump(reader, request))
            # Whichever side is done first, the other is told so.
            await asyncio.wait(
                {there, asyncio.create_task(_pump(answer, writer))}, return_when=asyncio.FIRST_COMPLETED
            )
            for connection_writer in (request, writer):
                connection_writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    own = ":".join(map(str, server.sockets[0].getsockname()))
    async with server:
        yield f"http://{own}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()


def _with_token(head: bytes, own: str, upstream: str, token: str) -> bytes:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept_lines = [line for line in lines if not line.lower().startswith((b"authorization:", b"connection:"))]
    # One request a connection, so that no later one passes without the token.
    added_headers = [f"Authorization: Bearer {token}".encode(), b"Connection: close"]
    request_lines = [
        line.replace(own.encode(), upstream.encode())
        if line.lower().startswith((b"host:", b"origin:"))
        else line
        for line in kept_lines
    ]
    return b"\r\n".join([first, *request_lines, *added_headers, b"", b""])
