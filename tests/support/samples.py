"""People's identities, connections and tokens for tests of the data layer."""

import secrets
import time
from typing import Any, Literal

from engine.connections.connection import Connection
from engine.identity.model import Actor, Identity, Principal
from engine.oauth.tokens import UpstreamTokens

TOOL = "resolve_billing_dispute"


def build_identity(principal: Principal, root: str = "run-1") -> Identity:
    return Identity(
        principal_id=principal.id,
        issuer=principal.issuer,
        subject=principal.subject,
        name=principal.name,
        actor=Actor("mcp_client", "chat", "Chat"),
        trigger="mcp",
        run_id=root,
        tool_name=TOOL,
        call_digest="call-1",
    )


def build_connection(
    name: str = "billing",
    *,
    url: str = "http://127.0.0.1:9",
    mode: Literal["user", "shared"] = "user",
    scopes: tuple[str, ...] = ("read_only",),
    **more: Any,
) -> Connection:
    return Connection.model_validate(
        {
            "name": name,
            "title": f"Acme {name.title()}",
            "system": "stripe",
            "mode": mode,
            "base_url": url,
            "scopes": scopes,
            "client_id": "byline",
            "provider": {
                "authorization_endpoint": f"{url}/oauth/authorize",
                "token_endpoint": f"{url}/oauth/token",
                "revocation_endpoint": f"{url}/oauth/revoke",
            },
            **more,
        }
    )


def build_tokens(*scopes: str, life: float = 3600.0, refresh_token: str | None = None) -> UpstreamTokens:
    return UpstreamTokens(
        secrets.token_urlsafe(), refresh_token, time.time() + life, scopes or ("read_only",)
    )
