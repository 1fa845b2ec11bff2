"""Creates and uses the Ed25519 keys that sign identities, access tokens and the audit trail.

Private keys are stored only sealed by the vault.
"""

import asyncio
import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from sqlmodel import col, select

from engine.db.database import Database, now
from engine.db.tables import SigningKeyRow
from engine.errors import IdentityForged
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_REFRESH_SECONDS = 30.0
# The fully specified name of EdDSA over Curve25519 (RFC 9864), which deprecates the bare "EdDSA".
_ALGORITHM = "Ed25519"


@dataclass(frozen=True, slots=True)
class _Signer:
    kid: str
    private: Ed25519PrivateKey
    jwk: OKPKey


@dataclass(frozen=True, slots=True)
class _Verifier:
    public: Ed25519PublicKey
    jwk: OKPKey
    retired: bool


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The public facts about a signing key."""

    kid: str
    created_at: datetime
    retired_at: datetime | None


class SigningKeys:
    """Signs with the newest key and verifies with every key that is not retired.

    A rotation or retirement by another process takes effect here within 30 seconds. An unknown key id is looked up
    at once.
    """

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._signer: _Signer | None = None
        self._verifiers: dict[str, _Verifier] = {}
        self._read_at = float("-inf")
        self._creating = asyncio.Lock()

    async def sign(self, claims: dict[str, Any], typ: str) -> str:
        """Return a compact EdDSA JWS (RFC 8037, RFC 9864) of the claims, with `typ` in its header.

        `iat`, in seconds since the epoch, and a random `jti` are added to the claims.
        """
        signer = await self._current()
        header = {"alg": _ALGORITHM, "kid": signer.kid, "typ": typ}
        payload = json.dumps(
            {**claims, "iat": int(time.time()), "jti": secrets.token_urlsafe(9)}, separators=(",", ":")
        )
        return jws.serialize_compact(header, payload, signer.jwk, algorithms=[_ALGORITHM])

    async def verify(self, token: str, typ: str) -> dict[str, Any]:
        """Return the claims of a token that a key in force signed with this `typ`; raises IdentityForged otherwise."""
        try:
            unverified = jws.extract_compact(token.encode())
            header = unverified.headers()
            verifier = await self._verifier(str(header.get("kid")))
            if verifier is None or verifier.retired or header.get("typ") != typ:
                raise IdentityForged("The identity was not signed by a key in force here.")
            verified = jws.deserialize_compact(token, verifier.jwk, algorithms=[_ALGORITHM])
            claims = json.loads(verified.payload)
        except (JoseError, ValueError, RecursionError) as error:
            raise IdentityForged("The identity's signature does not hold.") from error
        if not isinstance(claims, dict):
            raise IdentityForged("The identity holds no claims.")
        return claims

    async def bytes_signer(self) -> Callable[[bytes], tuple[str, bytes]]:
        """Return a function that signs a message without database access.

        It returns the signing key's id and the Ed25519 signature.
        """
        signer = await self._current()
        return lambda message: (signer.kid, signer.private.sign(message))

    async def verify_bytes(self, kid: str, signature: bytes, message: bytes) -> bool:
        """Whether the key signed the message. A retired key counts, since what it signed before stays valid."""
        verifier = await self._verifier(kid)
        if verifier is None:
            return False
        try:
            verifier.public.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    async def jwks(self) -> dict[str, Any]:
        """Return the public keys in force as a JSON Web Key Set (RFC 7517)."""
        await self._read()
        keys = [
            {**v.jwk.as_dict(private=False), "kid": kid, "alg": _ALGORITHM, "use": "sig"}
            for kid, v in self._verifiers.items()
            if not v.retired
        ]
        return {"keys": keys}

    async def all(self) -> list[SigningKey]:
        """Return every key, newest first."""
        newest_first = select(SigningKeyRow).order_by(col(SigningKeyRow.created_at).desc())
        async with self._database.reading() as session:
            rows = (await session.exec(newest_first)).all()
        return [SigningKey(row.kid, row.created_at, row.retired_at) for row in rows]

    async def rotate(self) -> str:
        """Create a new signing key and return its id. Older keys continue to verify."""
        kid = secrets.token_hex(8)
        private = Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        sealed = await self._vault.seal(private.private_bytes_raw(), _bound_to(kid, public))
        row = SigningKeyRow(kid=kid, public_key=public, sealed_private_key=sealed, created_at=now())
        async with self._database.writing() as session:
            session.add(row)
        await self._read()
        return kid

    async def retire(self, kid: str) -> bool:
        """Refuse from now on what this key signed, and return False if it is not in force or is the one that signs."""
        if kid == (await self._current()).kid:
            return False
        async with self._database.writing() as session:
            row = await session.get(SigningKeyRow, kid)
            if row is None or row.retired_at is not None:
                return False
            row.retired_at = now()
            session.add(row)
        await self._read()
        return True

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "signing keys",
            SigningKeyRow,
            "sealed_private_key",
            lambda row: _bound_to(row.kid, row.public_key),
        )

    async def _current(self) -> _Signer:
        if self._signer is None or time.monotonic() - self._read_at > _REFRESH_SECONDS:
            await self._read()
        while self._signer is None:
            await self._create_first()
        return self._signer

    async def _create_first(self) -> None:
        # Two processes that start on a new database may each create a key. Both are in force, and the newer signs.
        async with self._creating:
            await self._read()
            if self._signer is None:
                await self.rotate()

    async def _verifier(self, kid: str) -> _Verifier | None:
        if kid not in self._verifiers or time.monotonic() - self._read_at > _REFRESH_SECONDS:
            await self._read()
        return self._verifiers.get(kid)

    async def _read(self) -> None:
        async with self._database.reading() as session:
            newest_first = (col(SigningKeyRow.created_at).desc(), col(SigningKeyRow.kid))
            rows = (await session.exec(select(SigningKeyRow).order_by(*newest_first))).all()
        # Every key is unsealed, because only the seal proves it: write access to the table cannot add a key.
        opened = {row.kid: await self._open(row) for row in rows}
        self._verifiers = {
            row.kid: _Verifier(
                Ed25519PublicKey.from_public_bytes(row.public_key),
                _public_jwk(row),
                row.retired_at is not None,
            )
            for row in rows
        }
        signing = next((row for row in rows if row.retired_at is None), None)
        if signing is not None:
            self._signer = opened[signing.kid]
        self._read_at = time.monotonic()

    async def _open(self, row: SigningKeyRow) -> _Signer:
        secret = await self._vault.open(row.sealed_private_key, _bound_to(row.kid, row.public_key))
        jwk = OKPKey.import_key({**_jwk_members(row.public_key), "d": _base64url(secret)})
        return _Signer(row.kid, Ed25519PrivateKey.from_private_bytes(secret), jwk)


def _bound_to(kid: str, public_key: bytes) -> str:
    return f"signing_key:{kid}:{public_key.hex()}"


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwk_members(public: bytes) -> dict[str, str | list[str]]:
    return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(public)}


def _public_jwk(row: SigningKeyRow) -> OKPKey:
    return OKPKey.import_key(_jwk_members(row.public_key))
