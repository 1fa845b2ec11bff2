"""What a client asks of a person, and the code that the answer is worth once; codes are kept by their hash."""

import hashlib
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from mcp.server.auth.provider import AuthorizationParams
from sqlalchemy import delete, update
from sqlmodel import col, select

from engine.db.database import Database, now
from engine.db.tables import OAuthCodeRow

_ANSWER_WITHIN = timedelta(minutes=15)
_CODE_LIFE = timedelta(seconds=60)
# A code that comes a second time gives its thief away, so it is remembered for a while (RFC 6749 section 4.1.2).
_REMEMBERED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that nobody has answered yet."""

    id: str
    client_id: str
    parameters: AuthorizationParams


@dataclass(frozen=True, slots=True)
class Code:
    """A person's yes, before or after its one use; `id` is the family of the tokens that come of it."""

    id: str
    client_id: str
    principal_id: str
    parameters: AuthorizationParams
    expires_at: datetime
    used: bool


class Codes:
    """Owner of the table of questions and codes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(self, client_id: str, parameters: AuthorizationParams) -> str:
        """Keep the question; returns its id."""
        row = OAuthCodeRow(
            id=str(uuid.uuid4()),
            client_id=client_id,
            parameters=parameters.model_dump(mode="json"),
            expires_at=now() + _ANSWER_WITHIN,
        )
        async with self._database.writing() as session:
            await session.exec(delete(OAuthCodeRow).where(col(OAuthCodeRow.expires_at) < now() - _REMEMBERED))
            session.add(row)
        return row.id

    async def asked(self, question: str) -> Asked | None:
        """The question with this id, while it can be answered."""
        async with self._database.reading() as session:
            row = await session.get(OAuthCodeRow, question)
        if row is None or row.code_hash is not None or row.expires_at <= now():
            return None
        return Asked(row.id, row.client_id, AuthorizationParams.model_validate(row.parameters))

    async def allow(self, question: str, principal_id: str) -> str | None:
        """The code for a yes; None where the question was answered meanwhile."""
        code = secrets.token_urlsafe(32)
        answer = (
            update(OAuthCodeRow)
            .where(col(OAuthCodeRow.id) == question, col(OAuthCodeRow.code_hash).is_(None))
            .values(code_hash=_digest(code), principal_id=principal_id, expires_at=now() + _CODE_LIFE)
            .returning(col(OAuthCodeRow.id))
        )
        async with self._database.writing() as session:
            taken = (await session.exec(answer)).first()
        return None if taken is None else code

    async def decline(self, question: str) -> bool:
        """Forget a question that was answered with no; False where it was answered already."""
        forget = (
            delete(OAuthCodeRow)
            .where(col(OAuthCodeRow.id) == question, col(OAuthCodeRow.code_hash).is_(None))
            .returning(col(OAuthCodeRow.id))
        )
        async with self._database.writing() as session:
            return (await session.exec(forget)).first() is not None

    async def find(self, code: str) -> Code | None:
        """What this code stands for."""
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
        """Use the code up; False where it was used before."""
        first_use = (
            update(OAuthCodeRow)
            .where(col(OAuthCodeRow.id) == code.id, col(OAuthCodeRow.used_at).is_(None))
            .values(used_at=now())
            .returning(col(OAuthCodeRow.id))
        )
        async with self._database.writing() as session:
            return (await session.exec(first_use)).first() is not None


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
