"""A mail server and an HTTP receiver of this machine that keep what they are sent, and answer as a test says."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from ssl import SSLContext
from typing import Any

import uvicorn
from aiosmtpd.smtp import SMTP, Envelope, Session
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(frozen=True)
class ReceivedMail:
    """One mail: whom it is for, and what it says."""

    to: list[str]
    message: EmailMessage

    @property
    def text(self) -> str:
        """Its body, read as a person reads it."""
        return str(self.message.get_content())


@dataclass
class Mailbox:
    """All mails that a server took, and what it answers instead of taking one."""

    mails: list[ReceivedMail] = field(default_factory=list)
    refusal: str | None = None

    async def handle_DATA(  # noqa: N802 -- aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Take a mail."""
        if self.refusal is not None:
            return self.refusal
        content = envelope.content
        assert isinstance(content, bytes)
        message = message_from_bytes(content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(ReceivedMail([str(recipient) for recipient in envelope.rcpt_tos], message))
        return "250 taken"


@asynccontextmanager
async def run_mail_server(port: int) -> AsyncIterator[Mailbox]:
    """A real SMTP server at a port of 127.0.0.1."""
    mailbox = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox, loop=loop), "127.0.0.1", port)
    try:
        yield mailbox
    finally:
        server.close()


@dataclass(frozen=True)
class ReceivedRequest:
    """One request: where to, with which headers, and its body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Receiver:
    """All requests to an HTTP server, and what it answers to the next ones; to all others 200."""

    port: int
    posts: list[ReceivedRequest] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    def list_requests_to(self, path: str) -> list[ReceivedRequest]:
        """The requests to a path."""
        return [post for post in self.posts if post.path == path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request."""
        request = Request(scope, receive)
        self.posts.append(ReceivedRequest(request.url.path, dict(request.headers), await request.body()))
        answer = self.answers.pop(0) if self.answers else Response("ok")
        await answer(scope, receive, send)


@asynccontextmanager
async def run_receiver(
    answers: Iterable[Response] = (), *, tls: SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A real HTTP server at a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiving = Receiver(listener.getsockname()[1], answers=list(answers))
        async with serve_application(receiving, listener, tls=tls):
            yield receiving


@asynccontextmanager
async def serve_application(
    app: ASGIApp, listener: socket.socket, *, tls: SSLContext | None = None
) -> AsyncIterator[None]:
    """An ASGI application behind a real HTTP server at a socket."""
    options: dict[str, Any] = {"log_level": "warning", "lifespan": "off"}
    config = uvicorn.Config(app, **options)
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task
