"""Starts Kinto, a data service whose people sign in at an OpenID provider and which keeps its own history."""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support.foreign.process import free_port, run_program

SETTINGS = """
[server:main]
use = egg:waitress
host = 127.0.0.1
port = {port}

[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.memory
kinto.cache_backend = kinto.core.cache.memory
kinto.permission_backend = kinto.core.permission.memory
kinto.includes = kinto.plugins.openid kinto.plugins.history
kinto.userid_hmac_secret = {secret}
multiauth.policies = oidc basicauth
multiauth.policy.oidc.use = kinto.plugins.openid.OpenIDConnectPolicy
multiauth.policy.oidc.issuer = {issuer}
multiauth.policy.oidc.client_id = kinto
multiauth.policy.oidc.verification_ttl_seconds = 0
multiauth.policy.basicauth.use = kinto.core.authentication.BasicAuthAuthenticationPolicy
"""


@dataclass(frozen=True)
class Kinto:
    """A running Kinto and its administrator."""

    url: str
    administrator: httpx2.Client

    def add_collection(self, bucket: str, collection: str, *, creators: Sequence[str] = ()) -> None:
        """Make a collection that these people may add to; others see its records only where a record says so."""
        permissions = {"record:create": [build_user_id(name) for name in creators]}
        self.administrator.put(f"/buckets/{bucket}").raise_for_status()
        path = f"/buckets/{bucket}/collections/{collection}"
        self.administrator.put(path, json={"permissions": permissions}).raise_for_status()

    def add_record(
        self, path: str, data: Mapping[str, Any], *, readers: Sequence[str] = (), writers: Sequence[str] = ()
    ) -> None:
        """Put a record at `/buckets/…/collections/…/records/…` that these people may read or write."""
        permissions = {
            "read": [build_user_id(name) for name in readers],
            "write": [build_user_id(name) for name in writers],
        }
        answer = self.administrator.put(path, json={"data": data, "permissions": permissions})
        answer.raise_for_status()

    def list_records(self, collection: str, **having: str) -> list[dict[str, Any]]:
        """The records of `/buckets/…/collections/…` that have these values."""
        answer = self.administrator.get(f"{collection}/records", params=having)
        answer.raise_for_status()
        records: list[dict[str, Any]] = answer.json()["data"]
        return records

    def list_history(self, record: str) -> list[dict[str, Any]]:
        """What Kinto itself wrote down of a record's changes, the newest first."""
        bucket = record.split("/")[2]
        answer = self.administrator.get(f"/buckets/{bucket}/history", params={"uri": record})
        answer.raise_for_status()
        entries: list[dict[str, Any]] = answer.json()["data"]
        return entries


def build_user_id(name: str) -> str:
    """What Kinto calls a person whom the OpenID provider calls `name`."""
    return f"oidc:{name}"


@contextmanager
def kinto_server(folder: Path, issuer: str) -> Iterator[Kinto]:
    """Start Kinto trusting the access tokens of this issuer; the issuer must be running."""
    port = free_port()
    settings = folder / "kinto.ini"
    settings.write_text(SETTINGS.format(port=port, issuer=issuer, secret=secrets.token_hex(16)))
    url = f"http://127.0.0.1:{port}/v1"
    with (
        run_program(
            [sys.executable, "-m", "pyramid.scripts.pserve", str(settings)],
            log=folder / "kinto.log",
            port=port,
        ),
        httpx2.Client(base_url=url, auth=("administrator", secrets.token_hex(16))) as administrator,
    ):
        yield Kinto(url, administrator)
