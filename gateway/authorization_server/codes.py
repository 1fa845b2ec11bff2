"""Consent requests of OAuth clients, and the authorization codes that clients get for a person's yes.

Anybody can send a consent request. It is therefore sealed into the address of the consent page, and nothing is stored
until a person who is signed in answers it. A code can be used once, and is stored by its hash.
"""

import hashlib
import json
import secrets
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from mcp.server.auth.provider import AuthorizationParams
from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from engine.db.database import now
from engine.db.tables import OAuthCodeRow
from engine.errors import VaultSealBroken
from engine.services import Services

_ANSWER_WITHIN = timedelta(minutes=15)
_CODE_LIFE = timedelta(seconds=60)
# Used codes are kept for a while: a second use shows that the code was stolen (RFC 6749 section 4.1.2).
_REMEMBERED = timedelta(days=1)
_BOUND_TO: Final = "question of a client"


@dataclass(frozen=True, slots=True)
class Asked:
    """A consent request of a client that nobody has answered yet."""

    id: str
    client_id: str
    parameters: AuthorizationParams
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Code:
    """The authorization code for a person's yes, before or after its one use.

    `id` is the family of the tokens that are issued for it.
    """

    id: str
    client_id: str
    principal_id: str
    parameters: AuthorizationParams
    expires_at: datetime
    used: bool


class Codes:
    """Owner of the table of answers and codes."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._vault = services.vault

    async def ask(self, client_id: str, parameters: AuthorizationParams) -> str:
        """Seal a client's request into text that fits into a URL path."""
        told = {
            "id": str(uuid.uuid4()),
            "client_id": client_id,
            "parameters": parameters.model_dump(mode="json", exclude_none=True),
            "expires_at": (now() + _ANSWER_WITHIN).timestamp(),
        }
        return urlsafe_b64encode(await self._vault.seal(json.dumps(told).encode(), _BOUND_TO)).decode()

    async def asked(self, question: str) -> Asked | None:
        """Open a sealed request; None where it is invalid, has expired or was answered."""
        try:
            told = json.loads(await self._vault.open(urlsafe_b64decode(question), _BOUND_TO))
        except (ValueError, VaultSealBroken):
            return None
        parameters = AuthorizationParams.model_validate(told["parameters"])
        expires_at = datetime.fromtimestamp(told["expires_at"], UTC)
        asked = Asked(told["id"], told["client_id"], parameters, expires_at)
        async with self._database.reading() as session:
            is_answered = await session.get(OAuthCodeRow, asked.id) is not None
        return None if is_answered or asked.expires_at <= now() else asked

    async def allow(self, asked: Asked, principal_id: str) -> str | None:
        """Store a yes and return its code; None where the request was answered meanwhile."""
        code = secrets.token_urlsafe(32)
        row = _answer(asked, now() + _CODE_LIFE)
        row.code_hash, row.principal_id = _digest(code), principal_id
        return code if await self._is_first(row) else None

    async def decline(self, asked: Asked) -> bool:
        """Store a no; False where the request was answered already."""
        return await self._is_first(_answer(asked, asked.expires_at))

    async def _is_first(self, answer: OAuthCodeRow) -> bool:
        """Store an answer, and delete those that expired long ago; False where the request has an answer."""
        over = delete(OAuthCodeRow).where(col(OAuthCodeRow.expires_at) < now() - _REMEMBERED)
        try:
            async with self._database.writing() as session:
                await session.exec(over)
                session.add(answer)
        except IntegrityError:
            return False
        return True

    async def find(self, code: str) -> Code | None:
        """Return the record of this code, or None."""
        async with self._database.reading() as session:
            query = select(OAuthCodeRow).where(OAuthCodeRow.code_hash == _digest(code))
            row = (await session.exec(query)).one_or_none()
        if row is None or row.principal_id is None:
            return None
        parameters = AuthorizationParams.model_validate(row.parameters)
        return Code(
            row.id, row.client_id, row.principal_id, parameters, row.expires_at, row.used_at is not None
        )

    async def use(self, code: Code) -> bool:
        """Mark the code as used; False where it was used before."""
        first_use = (
            update(OAuthCodeRow)
            .where(col(OAuthCodeRow.id) == code.id, col(OAuthCodeRow.used_at).is_(None))
            .values(used_at=now())
            .returning(col(OAuthCodeRow.id))
        )
        async with self._database.writing() as session:
            return (await session.exec(first_use)).first() is not None


def _answer(asked: Asked, expires_at: datetime) -> OAuthCodeRow:
    return OAuthCodeRow(
        id=asked.id,
        client_id=asked.client_id,
        parameters=asked.parameters.model_dump(mode="json"),
        expires_at=expires_at,
    )


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
