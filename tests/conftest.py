"""What goes for all tests: the certificate authorities of this machine are read once, not for each of their clients."""

from collections.abc import Iterator
from functools import cache

import httpcore2
import pytest


@pytest.fixture(scope="session", autouse=True)
def trust_is_read_once() -> Iterator[None]:
    """Most clients of a test call 127.0.0.1 without TLS, and reading whom to trust costs more than the request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", cache(httpcore2.default_ssl_context))
        yield
