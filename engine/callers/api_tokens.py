"""Personal API tokens: they act as their owner with the owner's own grants. Only a hash of each is stored."""

import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import update
from sqlmodel import col, func, select

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent, AuditTrail
from engine.db.database import Database, utc_now
from engine.db.tables import ApiTokenRow
from engine.errors import ApiTokenInvalid, ApiTokenUnknown
from engine.identity.model import Actor, Principal
from engine.identity.principals import Principals
from engine.vault.digests import digest_secret

API_TOKEN_PREFIX: Final = "byline_"
DEFAULT_LIFETIME: Final = timedelta(days=90)
MAX_ACTIVE_TOKENS: Final = 100
"""How many active tokens one owner may have."""
MAX_NAME_CHARS: Final = 100

_TOKEN_PATTERN: Final = re.compile(rf"{API_TOKEN_PREFIX}([0-9a-f]{{16}})_([0-9a-f]{{64}})")
# The time of a token's last use is only shown to its owner, so it is not written at every call.
_USE_NOTE_INTERVAL = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token without its secret; `tools` is None where it may call every tool that its owner may call."""

    id: str
    principal_id: str
    name: str
    tool_names: frozenset[str] | None
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def token_state(self) -> str:
        """The state of the token: `active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.expires_at > utc_now() else "expired"


@dataclass(frozen=True, slots=True)
class NewApiToken:
    """A new token; `secret` is the complete value that its bearer sends, and it cannot be read again."""

    api_token: ApiToken
    token_text: str


class ApiTokens:
    """Owner of the table of API tokens."""

    def __init__(
        self, database: Database, principals: Principals, audit_trail: AuditTrail, max_lifetime: timedelta
    ) -> None:
        self._database = database
        self._principals = principals
        self._audit_trail = audit_trail
        self._max_lifetime = max_lifetime

    async def create_token(
        self,
        owner: Principal,
        token_name: str,
        *,
        tool_names: Collection[str] | None = None,
        lifetime: timedelta | None = None,
        actor: Actor | None = None,
        administrator: Administrator | None = None,
    ) -> NewApiToken:
        """Create a token for its owner; `administrator` creates it for a service. Raises ApiTokenInvalid."""
        token_lifetime = min(DEFAULT_LIFETIME, self._max_lifetime) if lifetime is None else lifetime
        if not timedelta() < token_lifetime <= self._max_lifetime:
            raise ApiTokenInvalid(
                f"An API token lives {self._max_lifetime.days} days at most: ask for that or less."
            )
        if not token_name.strip() or len(token_name) > MAX_NAME_CHARS or not token_name.isprintable():
            raise ApiTokenInvalid(
                f"Give the token a name of 1 to {MAX_NAME_CHARS} printable characters, by which you know it again."
            )
        if tool_names is not None and not tool_names:
            raise ApiTokenInvalid(
                "A token for no tool would be good for nothing: name its tools, or leave them out for all."
            )
        if await self._count_active_tokens(owner) >= MAX_ACTIVE_TOKENS:
            raise ApiTokenInvalid(f"{MAX_ACTIVE_TOKENS} API tokens in force are the most. Revoke one first.")
        token_secret = secrets.token_hex(32)
        token_row = ApiTokenRow(
            id=secrets.token_hex(8),
            principal_id=owner.id,
            name=token_name.strip(),
            secret_hash=digest_secret(token_secret),
            tools=None if tool_names is None else sorted(set(tool_names)),
            created_at=utc_now(),
            expires_at=utc_now() + token_lifetime,
        )
        audit_event = AuditEvent(
            kind="token.created",
            principal=owner,
            actor=actor,
            object_id=token_row.id,
            message=_describe_extent(token_row),
        )
        if administrator is not None:
            audit_event = attribute_event(audit_event, administrator)
        await self._audit_trail.append_event(audit_event, token_row)
        return NewApiToken(_to_api_token(token_row), f"{API_TOKEN_PREFIX}{token_row.id}_{token_secret}")

    async def verify_token(self, bearer_token: str) -> tuple[ApiToken, Principal] | None:
        """Return the token that a bearer sent and the active principal that it acts as, or None."""
        token_match = _TOKEN_PATTERN.fullmatch(bearer_token)
        if token_match is None:
            return None
        async with self._database.open_read_session() as db_session:
            token_row = await db_session.get(ApiTokenRow, token_match[1])
        if token_row is None or not hmac.compare_digest(token_row.secret_hash, digest_secret(token_match[2])):
            return None
        api_token = _to_api_token(token_row)
        owner = await self._principals.find_principal(api_token.principal_id)
        if api_token.token_state != "active" or owner is None or not owner.is_active:
            return None
        await self._note_token_use(api_token)
        return api_token, owner

    async def get_token(self, token_id: str, owner: Principal) -> ApiToken:
        """Return one token of an owner; raises ApiTokenUnknown."""
        async with self._database.open_read_session() as db_session:
            token_row = await db_session.get(ApiTokenRow, token_id)
        if token_row is None or token_row.principal_id != owner.id:
            raise _make_unknown_error(token_id, owner)
        return _to_api_token(token_row)

    async def list_tokens(self, owner: Principal) -> list[ApiToken]:
        """Return every token of an owner, newest first."""
        statement = (
            select(ApiTokenRow)
            .where(ApiTokenRow.principal_id == owner.id)
            .order_by(col(ApiTokenRow.created_at).desc(), col(ApiTokenRow.id).desc())
        )
        async with self._database.open_read_session() as db_session:
            return [_to_api_token(token_row) for token_row in (await db_session.exec(statement)).all()]

    async def revoke_token(
        self,
        token_id: str,
        owner: Principal,
        *,
        actor: Actor | None = None,
        administrator: Administrator | None = None,
    ) -> ApiToken:
        """Revoke the token now; a second call changes nothing. Raises ApiTokenUnknown for another owner's token."""
        async with self._audit_trail.open_transaction() as transaction:
            token_row = await transaction.db_session.get(ApiTokenRow, token_id, with_for_update=True)
            if token_row is None or token_row.principal_id != owner.id:
                raise _make_unknown_error(token_id, owner)
            if token_row.revoked_at is None:
                token_row.revoked_at = utc_now()
                transaction.db_session.add(token_row)
                audit_event = AuditEvent(
                    kind="token.revoked", principal=owner, actor=actor, object_id=token_row.id
                )
                if administrator is not None:
                    audit_event = attribute_event(audit_event, administrator)
                transaction.record(audit_event)
        return _to_api_token(token_row)

    async def _count_active_tokens(self, owner: Principal) -> int:
        statement = (
            select(func.count())
            .select_from(ApiTokenRow)
            .where(
                ApiTokenRow.principal_id == owner.id,
                col(ApiTokenRow.revoked_at).is_(None),
                col(ApiTokenRow.expires_at) > utc_now(),
            )
        )
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(statement)).one()

    async def _note_token_use(self, api_token: ApiToken) -> None:
        noted_before = utc_now() - _USE_NOTE_INTERVAL
        if api_token.last_used_at is not None and api_token.last_used_at > noted_before:
            return
        last_used_at = col(ApiTokenRow.last_used_at)
        statement = update(ApiTokenRow).where(
            col(ApiTokenRow.id) == api_token.id, last_used_at.is_(None) | (last_used_at <= noted_before)
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement.values(last_used_at=utc_now()))


def make_token_actor(api_token: ApiToken) -> Actor:
    """Return the token as the actor that acts for its owner."""
    return Actor(kind="api_token", id=api_token.id, name=api_token.name)


def _make_unknown_error(token_id: str, owner: Principal) -> ApiTokenUnknown:
    return ApiTokenUnknown(f"{owner.name} has no API token '{token_id}'.")


def _describe_extent(token_row: ApiTokenRow) -> str:
    allowed_tools = "every tool" if token_row.tools is None else ", ".join(token_row.tools)
    return f"'{token_row.name}', for {allowed_tools}, until {token_row.expires_at:%Y-%m-%d %H:%M} UTC"


def _to_api_token(token_row: ApiTokenRow) -> ApiToken:
    return ApiToken(
        id=token_row.id,
        principal_id=token_row.principal_id,
        name=token_row.name,
        tool_names=None if token_row.tools is None else frozenset(token_row.tools),
        created_at=token_row.created_at,
        expires_at=token_row.expires_at,
        last_used_at=token_row.last_used_at,
        revoked_at=token_row.revoked_at,
    )
