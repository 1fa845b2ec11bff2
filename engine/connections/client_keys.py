"""Reads the private keys with which Byline signs assertions to providers (`private_key_jwt`, RFC 7523)."""

import json
from typing import Final

from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from engine.errors import ConnectionMisconfigured

_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


def read_private_key(text: str, named: str) -> RSAKey | ECKey:
    """Read a private RSA or elliptic curve key from PEM or JWK text.

    Raises ConnectionMisconfigured for anything else. Its message contains `key_label`.
    """
    try:
        key = _jwk(text) if text.lstrip().startswith("{") else _pem(text.encode())
        if key.is_private:
            return key
    except (ValueError, TypeError, KeyError, JoseError):
        pass
    raise ConnectionMisconfigured(
        f"The {named} is no private RSA or elliptic curve key, as PEM or JWK."
    ) from None


def algorithm_of(key: RSAKey | ECKey) -> str:
    """Return the JWS algorithm that a key signs with (RFC 7518 section 3.1)."""
    return "RS256" if isinstance(key, RSAKey) else _CURVES[str(key.as_dict(private=False)["crv"])]


def assertion(key: RSAKey | ECKey, audience: str) -> PrivateKeyJWT:
    """Return the client authentication of RFC 7523 section 2.2 with this key, for the token endpoint `audience`."""
    return PrivateKeyJWT(audience, headers={"kid": key.kid or key.thumbprint()}, alg=algorithm_of(key))


def _jwk(text: str) -> RSAKey | ECKey:
    members = json.loads(text)
    return RSAKey.import_key(members) if members["kty"] == "RSA" else ECKey.import_key(members)


def _pem(text: bytes) -> RSAKey | ECKey:
    match load_pem_private_key(text, password=None):
        case rsa.RSAPrivateKey():
            return RSAKey.import_key(text)
        case ec.EllipticCurvePrivateKey():
            return ECKey.import_key(text)
        case _:
            raise ValueError
