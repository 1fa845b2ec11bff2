"""The audit trail: every line is signed and chained to the one before. Lines are appended and read, never changed."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal, cast

from sqlalchemy import ColumnElement, insert, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import AuditEventRow, AuditHeadRow
from engine.identity.model import Actor, Identity, Principal, ShellUser
from engine.identity.signing import SigningKeys

GENESIS_HASH = "0" * 64

_IS_HEAD_ROW = col(AuditHeadRow.id) == 1
_LOCK_HEAD_STATEMENT = select(AuditHeadRow.seq, AuditHeadRow.hash).where(_IS_HEAD_ROW).with_for_update()
_MOVE_HEAD_STATEMENT = update(AuditHeadRow).where(_IS_HEAD_ROW)
_INSERT_EVENTS_STATEMENT = insert(AuditEventRow)

SAFE_HTTP_METHODS: Final = ("GET", "HEAD", "OPTIONS")
"""The methods that only read (RFC 9110 section 9.2.1)."""

AuditEventKind = Literal[
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
    "client.registered",
    "client.removed",
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
    "principal.activated",
    "principal.deactivated",
    "role.given",
    "role.taken",
    "service.created",
    "channel.added",
    "channel.removed",
    "key.rotated",
    "key.retired",
    "vault.key_rotated",
    "vault.key_rewrapped",
    "vault.key_retired",
]
UpstreamVerdict = Literal[
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
    who acted, where that is not `principal` themselves. `actor` is a shell user where an administrator acted by a
    command.
    """

    kind: AuditEventKind
    identity: Identity | None = None
    principal: Principal | None = None
    actor: Actor | ShellUser | None = None
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
    verdict: UpstreamVerdict | None = None
    error: str | None = None
    message: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the event as it is stored: flat JSON without the fields that do not apply."""
        plain_fields = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in {"kind", "identity", "principal", "actor", "by"}
        }
        participants = {
            **self._describe_participants(),
            "by": None if self.by is None else _describe_principal(self.by),
        }
        return {
            field_name: _to_storable_json(field_value)
            for field_name, field_value in {**participants, **plain_fields}.items()
            if field_value is not None
        }

    def _describe_participants(self) -> dict[str, Any]:
        if self.identity is not None:
            identity = self.identity
            return {
                "principal": {
                    "id": identity.principal_id,
                    "iss": identity.issuer,
                    "sub": identity.subject,
                    "name": identity.name,
                    "kind": identity.kind,
                },
                "actor": _describe_actor(identity.actor),
                "trigger": identity.trigger,
                "tool": identity.tool_name,
            }
        participants = {} if self.principal is None else {"principal": _describe_principal(self.principal)}
        return participants if self.actor is None else {**participants, "actor": _describe_actor(self.actor)}


@dataclass(frozen=True, slots=True)
class TrailLine:
    """A stored event with its place in the chain."""

    seq: int
    time: datetime
    kind: str
    event: dict[str, Any]


@dataclass(slots=True)
class _ChainHead:
    seq: int
    hash: str


@dataclass(slots=True)
class _PendingAppend:
    audit_event: AuditEvent
    table_rows: tuple[SQLModel, ...]
    committed_seq: "asyncio.Future[int]"


class RecordingTransaction:
    """One transaction of the application database whose last statements write the events that were recorded in it.

    The lock that orders the trail is therefore held for as short a time as possible, and taken after every other one.
    """

    def __init__(self, db_session: AsyncSession) -> None:
        self.db_session = db_session
        self.audit_events: list[AuditEvent] = []

    def record(self, *audit_events: AuditEvent) -> None:
        """Write these events, in this order, if the transaction commits."""
        self.audit_events.extend(audit_events)


class AuditTrail:
    """Owner of the tables of the trail. Appends that arrive at the same time share one transaction."""

    def __init__(self, database: Database, signing_keys: SigningKeys) -> None:
        self._database = database
        self._signing_keys = signing_keys
        self._pending_appends: list[_PendingAppend] = []
        self._writer_task: asyncio.Task[None] | None = None

    async def append_event(self, audit_event: AuditEvent, *table_rows: SQLModel) -> int:
        """Write the event, and `table_rows` in the same transaction; return its sequence number once committed."""
        pending_append = _PendingAppend(audit_event, table_rows, asyncio.get_running_loop().create_future())
        self._pending_appends.append(pending_append)
        if self._writer_task is None or self._writer_task.done():
            self._writer_task = asyncio.create_task(self._write_pending_appends())
        return await pending_append.committed_seq

    @asynccontextmanager
    async def open_transaction(self) -> AsyncIterator[RecordingTransaction]:
        """Open a transaction for a change and its lines, committed at the end of the block, rolled back on any error.

        A use case that changes what is stored opens one of these. A line that stands alone, or beside new rows only, is
        appended, so that it shares its transaction with others.
        """
        # The signer comes first, because a signing key that does not exist yet is created in a transaction of its own.
        sign_bytes = await self._signing_keys.create_bytes_signer()
        async with self._database.open_write_session() as db_session:
            transaction = RecordingTransaction(db_session)
            yield transaction
            if transaction.audit_events:
                await _write_events(db_session, transaction.audit_events, sign_bytes)

    async def find_lines(
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
    ) -> list[TrailLine]:
        """Return the newest lines that fit every condition, oldest first; `writes_only` leaves out reading methods."""
        statement = select(AuditEventRow).order_by(col(AuditEventRow.seq).desc()).limit(limit)
        if system is not None:
            statement = statement.where(AuditEventRow.system == system)
        if record_id is not None:
            statement = statement.where(AuditEventRow.record_id == record_id)
        if principal_id is not None:
            statement = statement.where(AuditEventRow.principal_id == principal_id)
        if run_id is not None:
            statement = statement.where(AuditEventRow.run_id == run_id)
        if since is not None:
            statement = statement.where(col(AuditEventRow.time) >= since)
        if until is not None:
            statement = statement.where(col(AuditEventRow.time) < until)
        if writes_only:
            http_method = cast("ColumnElement[Any]", AuditEventRow.event)["method"].as_string()
            statement = statement.where(http_method.not_in(SAFE_HTTP_METHODS))
        async with self._database.open_read_session() as db_session:
            event_rows = (await db_session.exec(statement)).all()
        return [_to_trail_line(event_row) for event_row in reversed(event_rows)]

    async def find_last_use(self, principal_id: str, grant_id: str, granted_at: datetime) -> TrailLine | None:
        """Return the newest action that a principal's run took with this grant.

        `granted_at` is when it was granted, before which no action used it.
        """
        event_grant_id = cast("ColumnElement[Any]", AuditEventRow.event)["grant_id"].as_string()
        statement = (
            select(AuditEventRow)
            .where(
                AuditEventRow.principal_id == principal_id,
                col(AuditEventRow.time) >= granted_at,
                AuditEventRow.kind == "action.intended",
                event_grant_id == grant_id,
            )
            .order_by(col(AuditEventRow.time).desc(), col(AuditEventRow.seq).desc())
            .limit(1)
        )
        async with self._database.open_read_session() as db_session:
            event_row = (await db_session.exec(statement)).one_or_none()
        return None if event_row is None else _to_trail_line(event_row)

    async def list_lines_after(self, run_id: str, after_seq: int, limit: int) -> list[TrailLine]:
        """Return the lines of a run with sequence numbers above `after_seq`, oldest first."""
        statement = (
            select(AuditEventRow)
            .where(AuditEventRow.run_id == run_id, col(AuditEventRow.seq) > after_seq)
            .order_by(col(AuditEventRow.seq))
            .limit(limit)
        )
        async with self._database.open_read_session() as db_session:
            return [_to_trail_line(event_row) for event_row in (await db_session.exec(statement)).all()]

    async def read_newest_seq(self) -> int:
        """Return the sequence number of the newest line, or 0 if there is none."""
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(select(AuditHeadRow.seq).where(_IS_HEAD_ROW))).one_or_none() or 0

    async def may_have_acted(self, run_id: str, idempotency_key: str) -> bool:
        """Whether a request with this key took effect, or was about to be sent and has no known outcome."""
        trail_lines = [
            trail_line
            for trail_line in await self.find_lines(run_id=run_id, limit=None)
            if trail_line.event.get("idempotency_key") == idempotency_key
        ]
        verdicts_by_intent = {
            trail_line.event.get("intent"): trail_line.event.get("verdict", "no_answer")
            for trail_line in trail_lines
        }
        return any(
            trail_line.kind == "action.intended"
            and verdicts_by_intent.get(trail_line.seq, "no_answer") in {"no_answer", "allowed"}
            for trail_line in trail_lines
        )

    async def finish_appends(self) -> None:
        """Wait for the last appends to be committed."""
        if self._writer_task is not None:
            await self._writer_task

    async def _write_pending_appends(self) -> None:
        while self._pending_appends:
            append_batch, self._pending_appends = self._pending_appends, []
            await self._resolve_appends(append_batch)

    async def _resolve_appends(self, append_batch: list[_PendingAppend]) -> None:
        try:
            first_seq = await self._write_batch(append_batch)
        except Exception as error:  # noqa: BLE001 -- every waiting caller gets the error, whatever it is
            if len(append_batch) > 1 and isinstance(error, IntegrityError | DataError):
                # The rows of one of them were refused. The others only shared its transaction, so each is tried alone.
                for pending_append in append_batch:
                    await self._resolve_appends([pending_append])
                return
            for pending_append in append_batch:
                if not pending_append.committed_seq.done():
                    pending_append.committed_seq.set_exception(error)
        else:
            for line_seq, pending_append in enumerate(append_batch, first_seq):
                if not pending_append.committed_seq.done():
                    pending_append.committed_seq.set_result(line_seq)

    async def _write_batch(self, append_batch: list[_PendingAppend]) -> int:
        sign_bytes = await self._signing_keys.create_bytes_signer()
        async with self._database.open_write_session() as db_session:
            for pending_append in append_batch:
                db_session.add_all(pending_append.table_rows)
            audit_events = [pending_append.audit_event for pending_append in append_batch]
            return await _write_events(db_session, audit_events, sign_bytes)


async def _write_events(
    db_session: AsyncSession,
    audit_events: Sequence[AuditEvent],
    sign_bytes: Callable[[bytes], tuple[str, bytes]],
) -> int:
    """Write events as the last statements of a transaction, and return the sequence number of the first."""
    await db_session.flush()
    # These statements use the connection itself: the session's work around each one takes longer than they do.
    connection = await db_session.connection()
    chain_head = await _lock_head(connection)
    first_seq = chain_head.seq + 1
    await connection.execute(
        _INSERT_EVENTS_STATEMENT,
        [_chain_event(chain_head, audit_event, sign_bytes) for audit_event in audit_events],
    )
    await connection.execute(_MOVE_HEAD_STATEMENT, {"seq": chain_head.seq, "hash": chain_head.hash})
    return first_seq


def _chain_event(
    chain_head: _ChainHead, audit_event: AuditEvent, sign_bytes: Callable[[bytes], tuple[str, bytes]]
) -> dict[str, Any]:
    recorded_at, document = utc_now(), audit_event.to_document()
    previous_hash = chain_head.hash
    chain_head.seq += 1
    chain_head.hash = compute_chained_hash(
        chain_head.seq, recorded_at, audit_event.kind, document, previous_hash
    )
    kid, signature = sign_bytes(bytes.fromhex(chain_head.hash))
    return {
        "seq": chain_head.seq,
        "time": recorded_at,
        "kind": audit_event.kind,
        **extract_index_columns(document),
        "event": document,
        "previous_hash": previous_hash,
        "hash": chain_head.hash,
        "kid": kid,
        "signature": signature,
    }


def compute_chained_hash(
    line_seq: int, recorded_at: datetime, event_kind: str, document: dict[str, Any], previous_hash: str
) -> str:
    """Return the SHA-256 of the canonical JSON of a line and the hash of the line before, as hexadecimal digits."""
    canonical_json = json.dumps(
        [line_seq, recorded_at.isoformat(), event_kind, document, previous_hash],
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical_json.encode()).hexdigest()


def extract_index_columns(document: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that repeat parts of a document so that they can be searched."""
    return {
        "principal_id": document.get("principal", {}).get("id"),
        "run_id": document.get("run_id"),
        "system": document.get("system"),
        "record_id": document.get("record_id"),
    }


async def _lock_head(connection: AsyncConnection) -> _ChainHead:
    head_row = (await connection.execute(_LOCK_HEAD_STATEMENT)).one_or_none()
    if head_row is None:
        # Another process may insert the first head at this moment. The second one waits here and takes that head.
        with suppress(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(insert(AuditHeadRow), {"id": 1, "seq": 0, "hash": GENESIS_HASH})
        head_row = (await connection.execute(_LOCK_HEAD_STATEMENT)).one()
    return _ChainHead(head_row.seq, head_row.hash)


def _to_trail_line(event_row: AuditEventRow) -> TrailLine:
    return TrailLine(event_row.seq, event_row.time, event_row.kind, event_row.event)


def _describe_principal(principal: Principal) -> dict[str, Any]:
    return {
        "id": principal.id,
        "iss": principal.issuer,
        "sub": principal.subject,
        "name": principal.name,
        "kind": principal.kind,
    }


def _describe_actor(actor: Actor | ShellUser) -> dict[str, Any]:
    if isinstance(actor, ShellUser):
        return {"kind": "shell", "id": actor.id, "name": f"{actor.username} at {actor.hostname}"}
    return {"kind": actor.kind, "id": actor.id, "name": actor.name}


def _to_storable_json(json_value: object) -> object:
    """Return a value that every database can store: upstream text may hold NUL characters or lone surrogates."""
    match json_value:
        case str():
            return json_value.replace("\0", "?").encode(errors="replace").decode()
        case tuple():
            return [_to_storable_json(json_item) for json_item in json_value]
        case dict():
            return {json_key: _to_storable_json(json_item) for json_key, json_item in json_value.items()}
        case _:
            return json_value
