"""Consent requests of OAuth clients, and the authorization codes that clients get for a person's yes.

Anybody can send a consent request. It is therefore sealed into the address of the consent page, and nothing is stored
until a person who is signed in answers it. A code can be used once, and is stored by its hash.
"""

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

from engine.db.database import Database, utc_now
from engine.db.tables import OAuthCodeRow
from engine.errors import VaultSealBroken
from engine.vault.digests import digest_secret
from engine.vault.vault import Vault

_ANSWER_PERIOD = timedelta(minutes=15)
_CODE_LIFETIME = timedelta(seconds=60)
# Used codes are kept for a while: a second use shows that the code was stolen (RFC 6749 section 4.1.2).
_CODE_RETENTION = timedelta(days=1)
_SEALING_TEXT: Final = "question of a client"


@dataclass(frozen=True, slots=True)
class ConsentRequest:
    """A consent request of a client that nobody has answered yet."""

    id: str
    client_id: str
    parameters: AuthorizationParams
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AuthorizationCodeRecord:
    """The authorization code for a person's yes, before or after its one use.

    `id` is the family of the tokens that are issued for it.
    """

    id: str
    client_id: str
    principal_id: str
    parameters: AuthorizationParams
    expires_at: datetime
    is_used: bool


class AuthorizationCodes:
    """Owner of the table of answers and codes."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def seal_request(self, client_id: str, parameters: AuthorizationParams) -> str:
        """Seal a client's request into text that fits into a URL path."""
        request_content = {
            "id": str(uuid.uuid4()),
            "client_id": client_id,
            "parameters": parameters.model_dump(mode="json", exclude_none=True),
            "expires_at": (utc_now() + _ANSWER_PERIOD).timestamp(),
        }
        return urlsafe_b64encode(
            await self._vault.seal_secret(json.dumps(request_content).encode(), _SEALING_TEXT)
        ).decode()

    async def open_request(self, sealed_request: str) -> ConsentRequest | None:
        """Open a sealed request; None where it is invalid, has expired or was answered."""
        try:
            request_content = json.loads(
                await self._vault.open_secret(urlsafe_b64decode(sealed_request), _SEALING_TEXT)
            )
        except (ValueError, VaultSealBroken):
            return None
        parameters = AuthorizationParams.model_validate(request_content["parameters"])
        expires_at = datetime.fromtimestamp(request_content["expires_at"], UTC)
        consent_request = ConsentRequest(
            request_content["id"], request_content["client_id"], parameters, expires_at
        )
        async with self._database.open_read_session() as db_session:
            is_answered = await db_session.get(OAuthCodeRow, consent_request.id) is not None
        return None if is_answered or consent_request.expires_at <= utc_now() else consent_request

    async def issue_code(self, consent_request: ConsentRequest, principal_id: str) -> str | None:
        """Store a yes and return its code; None where the request was answered meanwhile."""
        authorization_code = secrets.token_urlsafe(32)
        code_row = _build_answer_row(consent_request, utc_now() + _CODE_LIFETIME)
        code_row.code_hash, code_row.principal_id = digest_secret(authorization_code), principal_id
        return authorization_code if await self._store_answer(code_row) else None

    async def record_refusal(self, consent_request: ConsentRequest) -> bool:
        """Store a no; False where the request was answered already."""
        return await self._store_answer(_build_answer_row(consent_request, consent_request.expires_at))

    async def _store_answer(self, answer_row: OAuthCodeRow) -> bool:
        """Store an answer, and delete those that expired long ago; False where the request has an answer."""
        cleanup_statement = delete(OAuthCodeRow).where(
            col(OAuthCodeRow.expires_at) < utc_now() - _CODE_RETENTION
        )
        try:
            async with self._database.open_write_session() as db_session:
                await db_session.exec(cleanup_statement)
                db_session.add(answer_row)
        except IntegrityError:
            return False
        return True

    async def find_code(self, authorization_code: str) -> AuthorizationCodeRecord | None:
        """Return the record of this code, or None."""
        async with self._database.open_read_session() as db_session:
            statement = select(OAuthCodeRow).where(
                OAuthCodeRow.code_hash == digest_secret(authorization_code)
            )
            code_row = (await db_session.exec(statement)).one_or_none()
        if code_row is None or code_row.principal_id is None:
            return None
        parameters = AuthorizationParams.model_validate(code_row.parameters)
        return AuthorizationCodeRecord(
            code_row.id,
            code_row.client_id,
            code_row.principal_id,
            parameters,
            code_row.expires_at,
            code_row.used_at is not None,
        )

    async def redeem_code(self, code_record: AuthorizationCodeRecord) -> bool:
        """Mark the code as used; False where it was used before."""
        statement = (
            update(OAuthCodeRow)
            .where(col(OAuthCodeRow.id) == code_record.id, col(OAuthCodeRow.used_at).is_(None))
            .values(used_at=utc_now())
            .returning(col(OAuthCodeRow.id))
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(statement)).first() is not None


def _build_answer_row(consent_request: ConsentRequest, expires_at: datetime) -> OAuthCodeRow:
    return OAuthCodeRow(
        id=consent_request.id,
        client_id=consent_request.client_id,
        parameters=consent_request.parameters.model_dump(mode="json"),
        expires_at=expires_at,
    )
