"""Digests of secrets that Byline hands out, by which their rows are found. The secrets themselves are not stored."""

import hashlib


def digest_secret(secret: str) -> str:
    """Return the SHA-256 digest of a secret, in hexadecimal.

    A plain digest is enough: the secrets are random and long, so that they cannot be guessed at any speed of hashing.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
