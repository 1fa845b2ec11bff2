"""The audit trail: every line is signed and chained to the one before. Lines are appended and read, never changed."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal, Protocol, cast

from sqlalchemy import ColumnElement, insert, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, now
from engine.db.tables import AuditEventRow, AuditHeadRow
from engine.identity.model import Actor, Identity, Principal
from engine.identity.signing import SigningKeys

GENESIS = "0" * 64

_THE_HEAD = col(AuditHeadRow.id) == 1
_LOCK_HEAD = select(AuditHeadRow.seq, AuditHeadRow.hash).where(_THE_HEAD).with_for_update()
_MOVE_HEAD = update(AuditHeadRow).where(_THE_HEAD)
_APPEND = insert(AuditEventRow)

SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
"""The methods that only read (RFC 9110 section 9.2.1)."""

Kind = Literal[
    "tool.called",
    "run.refused",
    "run.cancelled",
    "run.terminated",
    "action.intended",
    "action.ended",
    "action.refused",
    "authorization.requested",
    "authorization.granted",
    "authorization.denied",
    "authorization.expired",
    "authorization.refused",
    "attempt.refused",
    "account.chosen",
    "account.unchosen",
    "grant.removed",
    "grant.revoked",
    "grant.renewed",
    "connection.secret_put",
    "connection.secret_removed",
    "question.asked",
    "question.answered",
    "question.declined",
    "question.expired",
    "question.refused",
    "schedule.created",
    "schedule.changed",
    "schedule.paused",
    "schedule.resumed",
    "schedule.offered",
    "schedule.transferred",
    "schedule.deleted",
    "client.allowed",
    "client.asserted",
    "client.withdrawn",
    "token.created",
    "token.exchanged",
    "token.revoked",
    "webhook.created",
    "webhook.changed",
    "webhook.refused",
    "webhook.deleted",
    "role.given",
    "role.taken",
    "service.created",
    "channel.added",
    "channel.removed",
]
Verdict = Literal[
    "allowed",
    "denied",
    "insufficient_scope",
    "unauthenticated",
    "not_found",
    "rejected",
    "rate_limited",
    "failed",
    "unreachable",
    "no_answer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One event of the trail; a field that does not apply stays None.

    `intent` is the sequence number of the `action.intended` line whose outcome this event states. `by` is the principal
    who acted, where that is not `principal` themselves.
    """

    kind: Kind
    identity: Identity | None = None
    principal: Principal | None = None
    actor: Actor | None = None
    by: Principal | None = None
    run_id: str | None = None
    chain: tuple[str, ...] | None = None
    action: str | None = None
    attempt: int | None = None
    connection: str | None = None
    mode: str | None = None
    system: str | None = None
    method: str | None = None
    resource: str | None = None
    record_id: str | None = None
    idempotency_key: str | None = None
    grant_id: str | None = None
    fingerprint: str | None = None
    account: str | None = None
    for_tool: str | None = None
    scopes: tuple[str, ...] | None = None
    request_id: str | None = None
    object_id: str | None = None
    role: str | None = None
    intent: int | None = None
    status: int | None = None
    verdict: Verdict | None = None
    error: str | None = None
    message: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the event as it is stored: flat JSON without the fields that do not apply."""
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"kind", "identity", "principal", "actor", "by"}
        }
        names = {**self._names(), "by": None if self.by is None else _who(self.by)}
        return {key: _json(value) for key, value in {**names, **plain}.items() if value is not None}

    def _names(self) -> dict[str, Any]:
        if self.identity is not None:
            who = self.identity
            return {
                "principal": {
                    "id": who.principal_id,
                    "iss": who.issuer,
                    "sub": who.subject,
                    "name": who.name,
                    "kind": who.kind,
                },
                "actor": _through(who.actor),
                "trigger": who.trigger,
                "tool": who.tool,
            }
        names = {} if self.principal is None else {"principal": _who(self.principal)}
        return names if self.actor is None else {**names, "actor": _through(self.actor)}


@dataclass(frozen=True, slots=True)
class Line:
    """A stored event with its place in the chain."""

    seq: int
    time: datetime
    kind: str
    event: dict[str, Any]


@dataclass(slots=True)
class _Head:
    seq: int
    hash: str


@dataclass(slots=True)
class _Pending:
    event: AuditEvent
    rows: tuple[SQLModel, ...]
    done: "asyncio.Future[int]"


class Recorder(Protocol):
    """Writes events in a transaction that the caller has begun."""

    async def __call__(self, session: AsyncSession, *events: AuditEvent) -> int:
        """Write the events and return the first one's sequence number."""


class Trail:
    """Owner of the tables of the trail. Appends that arrive at the same time share one transaction."""

    def __init__(self, database: Database, keys: SigningKeys) -> None:
        self._database = database
        self._keys = keys
        self._pending: list[_Pending] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, event: AuditEvent, *rows: SQLModel) -> int:
        """Write the event, and `table_rows` in the same transaction; return its sequence number once committed."""
        pending = _Pending(event, rows, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending())
        return await pending.done

    async def recorder(self) -> "Recorder":
        """Return a function that writes events as the last statement of the caller's transaction.

        Call this before the transaction begins, because a signing key that does not exist yet is created in a
        transaction of its own.
        """
        sign = await self._keys.bytes_signer()

        async def record(session: AsyncSession, *events: AuditEvent) -> int:
            await session.flush()
            # These statements use the connection itself: the session's work around each one takes longer than they do.
            connection = await session.connection()
            head = await _locked_head(connection)
            first = head.seq + 1
            await connection.execute(_APPEND, [_chained(head, event, sign) for event in events])
            await connection.execute(_MOVE_HEAD, {"seq": head.seq, "hash": head.hash})
            return first

        return record

    async def find(
        self,
        *,
        system: str | None = None,
        record_id: str | None = None,
        principal_id: str | None = None,
        run_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        writes_only: bool = False,
        limit: int | None = 1000,
    ) -> list[Line]:
        """Return the newest lines that fit every condition, oldest first; `writes_only` leaves out reading methods."""
        query = select(AuditEventRow).order_by(col(AuditEventRow.seq).desc()).limit(limit)
        if system is not None:
            query = query.where(AuditEventRow.system == system)
        if record_id is not None:
            query = query.where(AuditEventRow.record_id == record_id)
        if principal_id is not None:
            query = query.where(AuditEventRow.principal_id == principal_id)
        if run_id is not None:
            query = query.where(AuditEventRow.run_id == run_id)
        if since is not None:
            query = query.where(col(AuditEventRow.time) >= since)
        if until is not None:
            query = query.where(col(AuditEventRow.time) < until)
        if writes_only:
            method = cast("ColumnElement[Any]", AuditEventRow.event)["method"].as_string()
            query = query.where(method.not_in(SAFE_METHODS))
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return [_line(row) for row in reversed(rows)]

    async def last_use(self, principal_id: str, grant_id: str, since: datetime) -> Line | None:
        """Return the newest action that a principal's run took with this grant of theirs, made at `granted_at`."""
        by_grant = cast("ColumnElement[Any]", AuditEventRow.event)["grant_id"].as_string()
        query = (
            select(AuditEventRow)
            .where(
                AuditEventRow.principal_id == principal_id,
                col(AuditEventRow.time) >= since,
                AuditEventRow.kind == "action.intended",
                by_grant == grant_id,
            )
            .order_by(col(AuditEventRow.time).desc(), col(AuditEventRow.seq).desc())
            .limit(1)
        )
        async with self._database.reading() as session:
            row = (await session.exec(query)).one_or_none()
        return None if row is None else _line(row)

    async def following(self, run_id: str, after: int, limit: int) -> list[Line]:
        """Return the lines of a run with sequence numbers above `after_seq`, oldest first."""
        query = (
            select(AuditEventRow)
            .where(AuditEventRow.run_id == run_id, col(AuditEventRow.seq) > after)
            .order_by(col(AuditEventRow.seq))
            .limit(limit)
        )
        async with self._database.reading() as session:
            return [_line(row) for row in (await session.exec(query)).all()]

    async def last(self) -> int:
        """Return the sequence number of the newest line, or 0 if there is none."""
        async with self._database.reading() as session:
            return (await session.exec(select(AuditHeadRow.seq).where(_THE_HEAD))).one_or_none() or 0

    async def may_have_acted(self, run_id: str, idempotency_key: str) -> bool:
        """Whether a request with this key took effect, or was about to be sent and has no known outcome."""
        lines = [
            line
            for line in await self.find(run_id=run_id, limit=None)
            if line.event.get("idempotency_key") == idempotency_key
        ]
        answered = {line.event.get("intent"): line.event.get("verdict", "no_answer") for line in lines}
        return any(
            line.kind == "action.intended" and answered.get(line.seq, "no_answer") in {"no_answer", "allowed"}
            for line in lines
        )

    async def close(self) -> None:
        """Wait for the last appends to be committed."""
        if self._writer is not None:
            await self._writer

    async def _write_pending(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            await self._settle(batch)

    async def _settle(self, batch: list[_Pending]) -> None:
        try:
            first = await self._write(batch)
        except Exception as error:  # noqa: BLE001 -- every waiting caller gets the error, whatever it is
            if len(batch) > 1 and isinstance(error, IntegrityError | DataError):
                # The rows of one of them were refused. The others only shared its transaction, so each is tried alone.
                for pending in batch:
                    await self._settle([pending])
                return
            for pending in batch:
                if not pending.done.done():
                    pending.done.set_exception(error)
        else:
            for seq, pending in enumerate(batch, first):
                if not pending.done.done():
                    pending.done.set_result(seq)

    async def _write(self, batch: list[_Pending]) -> int:
        record = await self.recorder()
        async with self._database.writing() as session:
            for pending in batch:
                session.add_all(pending.rows)
            return await record(session, *(pending.event for pending in batch))


def _chained(head: _Head, event: AuditEvent, sign: Callable[[bytes], tuple[str, bytes]]) -> dict[str, Any]:
    time, document = now(), event.document()
    previous = head.hash
    head.seq += 1
    head.hash = chained_hash(head.seq, time, event.kind, document, previous)
    kid, signature = sign(bytes.fromhex(head.hash))
    return {
        "seq": head.seq,
        "time": time,
        "kind": event.kind,
        **index_columns(document),
        "event": document,
        "previous_hash": previous,
        "hash": head.hash,
        "kid": kid,
        "signature": signature,
    }


def chained_hash(seq: int, time: datetime, kind: str, document: dict[str, Any], previous: str) -> str:
    """Return the SHA-256 of the canonical JSON of a line and the hash of the line before, as hexadecimal digits."""
    text = json.dumps(
        [seq, time.isoformat(), kind, document, previous], sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def index_columns(document: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that repeat parts of a document so that they can be searched."""
    return {
        "principal_id": document.get("principal", {}).get("id"),
        "run_id": document.get("run_id"),
        "system": document.get("system"),
        "record_id": document.get("record_id"),
    }


async def _locked_head(connection: AsyncConnection) -> _Head:
    found = (await connection.execute(_LOCK_HEAD)).one_or_none()
    if found is None:
        # Another process may insert the first head at this moment. The second one waits here and takes that head.
        with suppress(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(insert(AuditHeadRow), {"id": 1, "seq": 0, "hash": GENESIS})
        found = (await connection.execute(_LOCK_HEAD)).one()
    return _Head(found.seq, found.hash)


def _line(row: AuditEventRow) -> Line:
    return Line(row.seq, row.time, row.kind, row.event)


def _who(principal: Principal) -> dict[str, Any]:
    return {
        "id": principal.id,
        "iss": principal.issuer,
        "sub": principal.subject,
        "name": principal.name,
        "kind": principal.kind,
    }


def _through(actor: Actor) -> dict[str, Any]:
    return {"kind": actor.kind, "id": actor.id, "name": actor.name}


def _json(value: object) -> object:
    """Return a value that every database can store: upstream text may hold NUL characters or lone surrogates."""
    match value:
        case str():
            return value.replace("\0", "?").encode(errors="replace").decode()
        case tuple():
            return [_json(item) for item in value]
        case dict():
            return {key: _json(item) for key, item in value.items()}
        case _:
            return value
