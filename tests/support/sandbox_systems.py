"""Runs the sandbox systems for tests, each in its own process, and plays their people."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client

from examples.browser import Browser, Page
from examples.sandbox import billing, crm, support
from examples.sandbox.system import System

ROOT = Path(__file__).parents[2]
CALLBACK = "http://127.0.0.1:8080/oauth/callback"
SYSTEMS = {system.name: system for system in (crm.SYSTEM, billing.SYSTEM, support.SYSTEM)}


@dataclass
class SandboxProcess:
    """One system in its own process."""

    system: System
    url: str
    secret: str
    process: subprocess.Popen[bytes]

    def find_account(self, person: str) -> str:
        """Give the account name that alice or bob has here."""
        password = f"{person}-{self.system.name}"
        return next(seed.username for seed in self.system.people if seed.password == password)

    def build_client(
        self, scope: str | None = None, method: str = "client_secret_basic"
    ) -> AsyncOAuth2Client:
        """Give Authlib's client, registered here."""
        return AsyncOAuth2Client(
            "byline",
            self.secret,
            scope=scope,
            redirect_uri=CALLBACK,
            code_challenge_method="S256",
            token_endpoint_auth_method=method,
        )

    async def open_consent_page(
        self, browser: Browser, person: str, client: AsyncOAuth2Client
    ) -> tuple[Page, str]:
        """Send a person to this system, sign in, and give the consent page with the code verifier."""
        verifier = secrets.token_urlsafe(48)
        address, _ = client.create_authorization_url(
            self.url + self.system.oauth.authorize, code_verifier=verifier, state="st-1"
        )
        page = await browser.open(address)
        page = await page.form(
            submit="Sign in", username=self.find_account(person), password=f"{person}-{self.system.name}"
        )
        return page, verifier

    async def fetch_tokens(self, person: str, scope: str | None = None) -> dict[str, Any]:
        """Play the whole code flow and give the token response."""
        async with Browser(stop_at=CALLBACK) as browser, self.build_client(scope) as client:
            page, verifier = await self.open_consent_page(browser, person, client)
            page = await page.form(submit="Allow")
            return await self.exchange_code(client, page.url, verifier)

    async def exchange_code(
        self, client: AsyncOAuth2Client, redirected_to: str, verifier: str
    ) -> dict[str, Any]:
        """Swap the code in a redirect for tokens."""
        response: dict[str, Any] = await client.fetch_token(
            self.url + self.system.oauth.tokens,
            authorization_response=redirected_to,
            state="st-1",
            code_verifier=verifier,
        )
        return response

    async def fetch_access_token(self, person: str, scope: str | None = None) -> str:
        """Give a person's access token."""
        return str((await self.fetch_tokens(person, scope))["access_token"])

    def get_path(self, path: str, token: str | None = None) -> httpx2.Response:
        """Ask by plain HTTP."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.get(self.url + path, headers=headers)

    def add_fault(self, **fault: object) -> None:
        """Tell the system to have a trouble."""
        httpx2.post(self.url + "/_sandbox/faults", json=fault).raise_for_status()

    def list_requests(self, kind: str = "api") -> list[dict[str, Any]]:
        """Give what the system says it was asked."""
        response = httpx2.get(self.url + "/_sandbox/requests", params={"kind": kind})
        requests: list[dict[str, Any]] = response.raise_for_status().json()["requests"]
        return requests


@contextmanager
def run_sandbox_system(name: str, database: Path, *flags: str) -> Iterator[SandboxProcess]:
    """Start a system, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    secret = secrets.token_hex(16)
    command = [sys.executable, "-m", "examples.sandbox", name, "--port", port, "--database", str(database)]
    command += ["--redirect-uri", CALLBACK, "--client-secret-env", "SANDBOX_CLIENT_SECRET", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"SANDBOX_CLIENT_SECRET": secret})
    system = SandboxProcess(SYSTEMS[name], f"http://127.0.0.1:{port}", secret, process)
    try:
        wait_until(lambda: _is_up(system))
        yield system
    finally:
        process.terminate()
        process.wait(10)


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become true, with a deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _is_up(system: SandboxProcess) -> bool:
    assert system.process.poll() is None, "the system ended instead of starting"
    try:
        return httpx2.get(system.url + "/healthz").status_code == 200
    except httpx2.ConnectError:
        return False
