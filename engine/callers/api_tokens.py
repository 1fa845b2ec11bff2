"""Personal API tokens: they act as their owner with the owner's own grants. Only a hash of each is stored."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import update
from sqlmodel import col, func, select

from engine.audit.trail import AuditEvent, Trail
from engine.db.database import Database, now
from engine.db.tables import ApiTokenRow
from engine.errors import ApiTokenInvalid, ApiTokenUnknown
from engine.identity.model import Actor, Principal
from engine.identity.principals import Principals

PREFIX: Final = "byline_"
USUAL_LIFE: Final = timedelta(days=90)
MOST_IN_FORCE: Final = 100
"""How many active tokens one owner may have."""
LONGEST_NAME: Final = 100

_SHAPE: Final = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([0-9a-f]{{64}})")
# The time of a token's last use is only shown to its owner, so it is not written at every call.
_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token without its secret; `tools` is None where it may call every tool that its owner may call."""

    id: str
    principal_id: str
    name: str
    tools: frozenset[str] | None
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def state(self) -> str:
        """The state of the token: `active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.expires_at > now() else "expired"


@dataclass(frozen=True, slots=True)
class NewApiToken:
    """A new token; `secret` is the complete value that its bearer sends, and it cannot be read again."""

    token: ApiToken
    secret: str


class ApiTokens:
    """Owner of the table of API tokens."""

    def __init__(
        self, database: Database, principals: Principals, trail: Trail, longest_life: timedelta
    ) -> None:
        self._database = database
        self._principals = principals
        self._trail = trail
        self._longest_life = longest_life

    async def create(
        self,
        owner: Principal,
        name: str,
        *,
        tools: Collection[str] | None = None,
        life: timedelta | None = None,
        actor: Actor | None = None,
        by: Principal | None = None,
    ) -> NewApiToken:
        """Create a token for its owner; `administrator` creates it for a service. Raises ApiTokenInvalid."""
        chosen = min(USUAL_LIFE, self._longest_life) if life is None else life
        if not timedelta() < chosen <= self._longest_life:
            raise ApiTokenInvalid(
                f"An API token lives {self._longest_life.days} days at most: ask for that or less."
            )
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise ApiTokenInvalid(
                f"Give the token a name of 1 to {LONGEST_NAME} printable characters, by which you know it again."
            )
        if tools is not None and not tools:
            raise ApiTokenInvalid(
                "A token for no tool would be good for nothing: name its tools, or leave them out for all."
            )
        if await self._in_force(owner) >= MOST_IN_FORCE:
            raise ApiTokenInvalid(f"{MOST_IN_FORCE} API tokens in force are the most. Revoke one first.")
        secret = secrets.token_hex(32)
        row = ApiTokenRow(
            id=secrets.token_hex(8),
            principal_id=owner.id,
            name=name.strip(),
            secret_hash=_digest(secret),
            tools=None if tools is None else sorted(set(tools)),
            created_at=now(),
            expires_at=now() + chosen,
        )
        created = AuditEvent(
            kind="token.created",
            principal=owner,
            actor=actor,
            by=by,
            object_id=row.id,
            message=_extent(row),
        )
        await self._trail.append(created, row)
        return NewApiToken(_token(row), f"{PREFIX}{row.id}_{secret}")

    async def verify(self, bearer: str) -> tuple[ApiToken, Principal] | None:
        """Return the token that a bearer sent and the active principal that it acts as, or None."""
        shape = _SHAPE.fullmatch(bearer)
        if shape is None:
            return None
        async with self._database.reading() as session:
            row = await session.get(ApiTokenRow, shape[1])
        if row is None or not hmac.compare_digest(row.secret_hash, _digest(shape[2])):
            return None
        token = _token(row)
        owner = await self._principals.get(token.principal_id)
        if token.state != "active" or owner is None or not owner.active:
            return None
        await self._note_use(token)
        return token, owner

    async def get(self, token_id: str, owner: Principal) -> ApiToken:
        """Return one token of an owner; raises ApiTokenUnknown."""
        async with self._database.reading() as session:
            row = await session.get(ApiTokenRow, token_id)
        if row is None or row.principal_id != owner.id:
            raise _unknown(token_id, owner)
        return _token(row)

    async def of(self, owner: Principal) -> list[ApiToken]:
        """Return every token of an owner, newest first."""
        query = (
            select(ApiTokenRow)
            .where(ApiTokenRow.principal_id == owner.id)
            .order_by(col(ApiTokenRow.created_at).desc(), col(ApiTokenRow.id).desc())
        )
        async with self._database.reading() as session:
            return [_token(row) for row in (await session.exec(query)).all()]

    async def revoke(
        self, token_id: str, owner: Principal, *, actor: Actor | None = None, by: Principal | None = None
    ) -> ApiToken:
        """Revoke the token now; a second call changes nothing. Raises ApiTokenUnknown for another owner's token."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await session.get(ApiTokenRow, token_id, with_for_update=True)
            if row is None or row.principal_id != owner.id:
                raise _unknown(token_id, owner)
            if row.revoked_at is None:
                row.revoked_at = now()
                session.add(row)
                revoked = AuditEvent(
                    kind="token.revoked", principal=owner, actor=actor, by=by, object_id=row.id
                )
                await record(session, revoked)
        return _token(row)

    async def _in_force(self, owner: Principal) -> int:
        query = (
            select(func.count())
            .select_from(ApiTokenRow)
            .where(
                ApiTokenRow.principal_id == owner.id,
                col(ApiTokenRow.revoked_at).is_(None),
                col(ApiTokenRow.expires_at) > now(),
            )
        )
        async with self._database.reading() as session:
            return (await session.exec(query)).one()

    async def _note_use(self, token: ApiToken) -> None:
        due = now() - _NOTED_EVERY
        if token.last_used_at is not None and token.last_used_at > due:
            return
        last_used = col(ApiTokenRow.last_used_at)
        note = update(ApiTokenRow).where(
            col(ApiTokenRow.id) == token.id, last_used.is_(None) | (last_used <= due)
        )
        async with self._database.writing() as session:
            await session.exec(note.values(last_used_at=now()))


def bearer_actor(token: ApiToken) -> Actor:
    """Return the token as the actor that acts for its owner."""
    return Actor(kind="api_token", id=token.id, name=token.name)


def _unknown(token_id: str, owner: Principal) -> ApiTokenUnknown:
    return ApiTokenUnknown(f"{owner.name} has no API token '{token_id}'.")


def _extent(row: ApiTokenRow) -> str:
    reach = "every tool" if row.tools is None else ", ".join(row.tools)
    return f"'{row.name}', for {reach}, until {row.expires_at:%Y-%m-%d %H:%M} UTC"


def _token(row: ApiTokenRow) -> ApiToken:
    return ApiToken(
        id=row.id,
        principal_id=row.principal_id,
        name=row.name,
        tools=None if row.tools is None else frozenset(row.tools),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


# A plain hash is enough: the secret is 256 random bits, which cannot be guessed at any speed of hashing.
def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
