"""Reads the private keys with which Byline signs assertions to providers (`private_key_jwt`, RFC 7523)."""

import json
from typing import Final

from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from engine.errors import ConnectionMisconfigured

_CURVE_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def read_private_key(key_text: str, key_label: str) -> RSAKey | ECKey:
    """Read a private RSA or elliptic curve key from PEM or JWK text.

    Raises ConnectionMisconfigured for anything else. Its message contains `key_label`.
    """
    try:
        private_key = (
            _parse_jwk(key_text) if key_text.lstrip().startswith("{") else _parse_pem(key_text.encode())
        )
        if private_key.is_private:
            return private_key
    except (ValueError, TypeError, KeyError, JoseError):
        pass
    raise ConnectionMisconfigured(
        f"The {key_label} is no private RSA or elliptic curve key, as PEM or JWK."
    ) from None


def select_algorithm(private_key: RSAKey | ECKey) -> str:
    """Return the JWS algorithm that a key signs with (RFC 7518 section 3.1)."""
    return (
        "RS256"
        if isinstance(private_key, RSAKey)
        else _CURVE_ALGORITHMS[str(private_key.as_dict(private=False)["crv"])]
    )


def create_private_key_jwt(private_key: RSAKey | ECKey, audience: str) -> PrivateKeyJWT:
    """Return the client authentication of RFC 7523 section 2.2 with this key, for the token endpoint `audience`."""
    return PrivateKeyJWT(
        audience,
        headers={"kid": private_key.kid or private_key.thumbprint()},
        alg=select_algorithm(private_key),
    )


def _parse_jwk(jwk_text: str) -> RSAKey | ECKey:
    jwk_members = json.loads(jwk_text)
    return RSAKey.import_key(jwk_members) if jwk_members["kty"] == "RSA" else ECKey.import_key(jwk_members)


def _parse_pem(pem_bytes: bytes) -> RSAKey | ECKey:
    match load_pem_private_key(pem_bytes, password=None):
        case rsa.RSAPrivateKey():
            return RSAKey.import_key(pem_bytes)
        case ec.EllipticCurvePrivateKey():
            return ECKey.import_key(pem_bytes)
        case _:
            raise ValueError
