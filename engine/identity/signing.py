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

from engine.db.database import Database, utc_now
from engine.db.tables import SigningKeyRow
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import SIGNING_KEY_SEAL

_REFRESH_INTERVAL_SECONDS = 30.0
# The fully specified name of EdDSA over Curve25519 (RFC 9864), which deprecates the bare "EdDSA".
_ALGORITHM = "Ed25519"


@dataclass(frozen=True, slots=True)
class _Signer:
    kid: str
    private_key: Ed25519PrivateKey
    jwk: OKPKey


@dataclass(frozen=True, slots=True)
class _Verifier:
    public_key: Ed25519PublicKey
    jwk: OKPKey
    is_retired: bool


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
        self._keys_read_at = float("-inf")
        self._creation_lock = asyncio.Lock()

    async def sign_claims(self, claims: dict[str, Any], typ: str) -> str:
        """Return a compact EdDSA JWS (RFC 8037, RFC 9864) of the claims, with `typ` in its header.

        `iat`, in seconds since the epoch, and a random `jti` are added to the claims.
        """
        signer = await self._load_signer()
        jws_header = {"alg": _ALGORITHM, "kid": signer.kid, "typ": typ}
        jws_payload = json.dumps(
            {**claims, "iat": int(time.time()), "jti": secrets.token_urlsafe(9)}, separators=(",", ":")
        )
        return jws.serialize_compact(jws_header, jws_payload, signer.jwk, algorithms=[_ALGORITHM])

    async def verify_token(self, signed_token: str, typ: str) -> VerifiedClaims:
        """Return the claims of a token that a key in force signed with this `typ`; raises IdentityForged otherwise."""
        try:
            unverified_jws = jws.extract_compact(signed_token.encode())
            jws_header = unverified_jws.headers()
            verifier = await self._find_verifier(str(jws_header.get("kid")))
            if verifier is None or verifier.is_retired or jws_header.get("typ") != typ:
                raise IdentityForged("The identity was not signed by a key in force here.")
            verified_jws = jws.deserialize_compact(signed_token, verifier.jwk, algorithms=[_ALGORITHM])
            claims = json.loads(verified_jws.payload)
        except (JoseError, ValueError, RecursionError) as error:
            raise IdentityForged("The identity's signature does not hold.") from error
        if not isinstance(claims, dict):
            raise IdentityForged("The identity holds no claims.")
        return VerifiedClaims(claims)

    async def create_bytes_signer(self) -> Callable[[bytes], tuple[str, bytes]]:
        """Return a function that signs a message without database access.

        It returns the signing key's id and the Ed25519 signature.
        """
        signer = await self._load_signer()
        return lambda message: (signer.kid, signer.private_key.sign(message))

    async def verify_signature(self, kid: str, signature: bytes, message: bytes) -> bool:
        """Whether the key signed the message. A retired key counts, since what it signed before stays valid."""
        verifier = await self._find_verifier(kid)
        if verifier is None:
            return False
        try:
            verifier.public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    async def build_jwks(self) -> dict[str, Any]:
        """Return the public keys in force as a JSON Web Key Set (RFC 7517)."""
        await self._load_keys()
        public_jwks = [
            {**verifier.jwk.as_dict(private=False), "kid": kid, "alg": _ALGORITHM, "use": "sig"}
            for kid, verifier in self._verifiers.items()
            if not verifier.is_retired
        ]
        return {"keys": public_jwks}

    async def list_keys(self) -> list[SigningKey]:
        """Return every key, newest first."""
        statement = select(SigningKeyRow).order_by(col(SigningKeyRow.created_at).desc())
        async with self._database.open_read_session() as db_session:
            key_rows = (await db_session.exec(statement)).all()
        return [SigningKey(key_row.kid, key_row.created_at, key_row.retired_at) for key_row in key_rows]

    async def rotate_key(self) -> str:
        """Create a new signing key and return its id. Older keys continue to verify."""
        kid = secrets.token_hex(8)
        private_key = Ed25519PrivateKey.generate()
        public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        sealed_private_key = await self._vault.seal_secret(
            private_key.private_bytes_raw(), _build_associated_data(kid, public_key)
        )
        key_row = SigningKeyRow(
            kid=kid, public_key=public_key, sealed_private_key=sealed_private_key, created_at=utc_now()
        )
        async with self._database.open_write_session() as db_session:
            db_session.add(key_row)
        await self._load_keys()
        return kid

    async def retire_key(self, kid: str) -> bool:
        """Refuse from now on what this key signed, and return False if it is not in force or is the one that signs."""
        if kid == (await self._load_signer()).kid:
            return False
        async with self._database.open_write_session() as db_session:
            key_row = await db_session.get(SigningKeyRow, kid)
            if key_row is None or key_row.retired_at is not None:
                return False
            key_row.retired_at = utc_now()
            db_session.add(key_row)
        await self._load_keys()
        return True

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "signing keys",
            SigningKeyRow,
            "sealed_private_key",
            lambda key_row: _build_associated_data(key_row.kid, key_row.public_key),
        )

    async def _load_signer(self) -> _Signer:
        if self._signer is None or time.monotonic() - self._keys_read_at > _REFRESH_INTERVAL_SECONDS:
            await self._load_keys()
        while self._signer is None:
            await self._create_first_key()
        return self._signer

    async def _create_first_key(self) -> None:
        # Two processes that start on a new database may each create a key. Both are in force, and the newer signs.
        async with self._creation_lock:
            await self._load_keys()
            if self._signer is None:
                await self.rotate_key()

    async def _find_verifier(self, kid: str) -> _Verifier | None:
        if kid not in self._verifiers or time.monotonic() - self._keys_read_at > _REFRESH_INTERVAL_SECONDS:
            await self._load_keys()
        return self._verifiers.get(kid)

    async def _load_keys(self) -> None:
        async with self._database.open_read_session() as db_session:
            ordering = (col(SigningKeyRow.created_at).desc(), col(SigningKeyRow.kid))
            key_rows = (await db_session.exec(select(SigningKeyRow).order_by(*ordering))).all()
        # Every key is unsealed, because only the seal proves it: write access to the table cannot add a key.
        signers_by_kid = {key_row.kid: await self._unseal_key(key_row) for key_row in key_rows}
        self._verifiers = {
            key_row.kid: _Verifier(
                Ed25519PublicKey.from_public_bytes(key_row.public_key),
                _build_public_jwk(key_row),
                key_row.retired_at is not None,
            )
            for key_row in key_rows
        }
        signing_row = next((key_row for key_row in key_rows if key_row.retired_at is None), None)
        if signing_row is not None:
            self._signer = signers_by_kid[signing_row.kid]
        self._keys_read_at = time.monotonic()

    async def _unseal_key(self, key_row: SigningKeyRow) -> _Signer:
        private_bytes = await self._vault.open_secret(
            key_row.sealed_private_key, _build_associated_data(key_row.kid, key_row.public_key)
        )
        jwk = OKPKey.import_key(
            {**_build_jwk_members(key_row.public_key), "d": _encode_base64url(private_bytes)}
        )
        return _Signer(key_row.kid, Ed25519PrivateKey.from_private_bytes(private_bytes), jwk)


def _build_associated_data(kid: str, public_key: bytes) -> str:
    return SIGNING_KEY_SEAL.format(key_id=kid, public_key=public_key.hex())


def _encode_base64url(raw_bytes: bytes) -> str:
    return urlsafe_b64encode(raw_bytes).rstrip(b"=").decode()


def _build_jwk_members(public_key: bytes) -> dict[str, str | list[str]]:
    return {"kty": "OKP", "crv": "Ed25519", "x": _encode_base64url(public_key)}


def _build_public_jwk(key_row: SigningKeyRow) -> OKPKey:
    return OKPKey.import_key(_build_jwk_members(key_row.public_key))
