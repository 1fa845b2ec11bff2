"""Vault's transit engine and logins as its API reference tells them, with real AES-GCM over HTTP; it is no Vault."""

import json
import secrets
import time
from base64 import b64decode, b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.of-the-test"
ROLE_ID = "role-of-byline"
SECRET_ID = "secret-id-of-byline"


class TransitServer:
    """One engine with one key of type aes256-gcm96; it counts what it is asked, and may be stopped and started.

    A login gets a token for `lease` seconds: by role id and secret id, or by the role `byline` and what `jwts` holds.
    """

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.request_paths: list[str] = []
        self.lease = 3600.0
        self.jwts: set[str] = set()
        self.permits = True
        self.refusal_count = 0
        self.versions = [secrets.token_bytes(32)]
        self.min_decryption_version = 1
        self._tokens = {TOKEN: float("inf")}
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Answer from now on."""
        transit = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                if self.path.startswith("/v1/auth/"):
                    status, answer = transit.log_in(self.path, body)
                else:
                    status, answer = transit.answer(self.path, self.headers.get("X-Vault-Token"), body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Answer nothing."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def forget_tokens(self) -> None:
        """Refuse every token that a login gave until now, as after a restart or a revocation."""
        self._tokens = {TOKEN: float("inf")}

    def answer(self, path: str, token: str | None, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """What the engine says to one request."""
        operation = path.removeprefix("/v1/transit/").split("/")
        self.request_paths.append(operation[0])
        if not self.permits or time.monotonic() >= self._tokens.get(token or "", 0.0):
            self.refusal_count += 1
            return 403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}
        bound_to = b64decode(body.get("associated_data", ""))
        match operation:
            case ["keys", "byline", "rotate"]:
                self.versions.append(secrets.token_bytes(32))
                return 200, {"data": {"latest_version": len(self.versions)}}
            case ["keys", "byline", "config"]:
                self.min_decryption_version = int(body["min_decryption_version"])
                return 200, {"data": {}}
            case ["encrypt", "byline"]:
                nonce = secrets.token_bytes(12)
                sealed_bytes = nonce + AESGCM(self.versions[-1]).encrypt(
                    nonce, b64decode(body["plaintext"]), bound_to
                )
                text = f"vault:v{len(self.versions)}:{b64encode(sealed_bytes).decode()}"
                return 200, {"data": {"ciphertext": text, "key_version": len(self.versions)}}
            case ["decrypt", "byline"]:
                return self._decrypt(body["ciphertext"], bound_to)
        return 400, {"errors": ["encryption key not found"]}

    def log_in(self, path: str, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """What the method at a mount says to one login."""
        self.request_paths.append("login")
        match path:
            case "/v1/auth/approle/login" if (body["role_id"], body["secret_id"]) == (ROLE_ID, SECRET_ID):
                pass
            case "/v1/auth/cluster/login" if body["role"] == "byline" and body["jwt"] in self.jwts:
                pass
            case "/v1/auth/approle/login":
                return 400, {"errors": ["invalid role or secret ID"]}
            case _:
                return 403, {"errors": ["permission denied"]}
        token = f"hvs.{secrets.token_urlsafe(16)}"
        self._tokens[token] = time.monotonic() + (self.lease or float("inf"))
        return 200, {
            "auth": {"client_token": token, "lease_duration": self.lease, "renewable": True},
        }

    def _decrypt(self, ciphertext: str, bound_to: bytes) -> tuple[int, dict[str, Any]]:
        _, version, text = ciphertext.split(":")
        if int(version[1:]) < self.min_decryption_version:
            return 400, {"errors": ["ciphertext or signature version is disallowed by policy (too old)"]}
        sealed_bytes = b64decode(text)
        try:
            plain = AESGCM(self.versions[int(version[1:]) - 1]).decrypt(
                sealed_bytes[:12], sealed_bytes[12:], bound_to
            )
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": b64encode(plain).decode()}}
