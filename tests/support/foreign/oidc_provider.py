"""Starts the certified OpenID provider from npm and signs its people in; it knows nothing of Byline."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from joserfc.jwk import RSAKey

from examples.browser import Browser, Page
from tests.support.foreign.node import NODE, SCRIPTS
from tests.support.foreign.process import free_port, run_program


@dataclass(frozen=True)
class RegisteredClient:
    """A client that the provider knows from its start; a public one, or one known by its key, has no secret."""

    id: str
    secret: str
    redirect_uris: tuple[str, ...]
    more: Mapping[str, object] = field(default_factory=dict)

    def metadata(self) -> dict[str, object]:
        """The client in the words of dynamic client registration."""
        return {
            "client_id": self.id,
            **({"client_secret": self.secret} if self.secret else {}),
            "redirect_uris": self.redirect_uris,
            "grant_types": ["authorization_code", "refresh_token"],
            **self.more,
        }


@dataclass(frozen=True)
class OidcProvider:
    """A running provider with the people alice and bob, and the key that it signs with."""

    issuer: str
    key: RSAKey = field(repr=False)

    async def confirm(self, address: str, person: str, *, submit: str = "Continue") -> Page:
        """Open the page of a device's code as this person, confirm it or press another button, and sign in."""
        async with Browser() as browser:
            page = await browser.open(address)
            if 'name="confirm"' not in page.text:
                page = await page.form(submit="Continue")
            page = await page.form(submit=submit)
            while "<form" in page.text and submit == "Continue":
                if 'name="login"' in page.text:
                    page = await page.form(submit="Sign-in", login=person, password="any will do")
                else:
                    page = await page.form(submit="Continue")
            return page

    async def let_in(self, page: Page, person: str) -> Page:
        """Sign in and consent as this person, until the provider sends the browser elsewhere."""
        while page.url.startswith(f"{self.issuer}/"):
            if 'name="login"' in page.text:
                page = await page.form(submit="Sign-in", login=person, password="any will do")
            else:
                page = await page.form(submit="Continue")
        return page


@contextmanager
def oidc_provider(
    folder: Path,
    clients: Sequence[RegisteredClient] = (),
    scopes: Sequence[str] = (),
    *,
    port: int | None = None,
    vouches: Mapping[str, str] | None = None,
    trusts: Mapping[str, str] | None = None,
    documents: Mapping[str, str] | None = None,
) -> Iterator[OidcProvider]:
    """Start a provider; an access token asked for with a `resource` is a JWT for it, with these scopes.

    `vouches` maps an audience to the client that it knows whoever asks here as; `trusts` maps an issuer whose
    statements are taken to the audience that its ID tokens have; `documents` maps an origin, at which clients have
    their metadata documents, to where it is served here.
    """
    port = port or free_port()
    key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
    configuration = {
        "port": port,
        "clients": [client.metadata() for client in clients],
        "scopes": scopes,
        "key": key.as_dict(private=True),
        "statements": {"vouches": vouches or {}, "trusts": trusts or {}},
        "documents": documents or {},
    }
    with run_program(
        [str(NODE), str(SCRIPTS / "oidc-provider.mjs"), json.dumps(configuration)],
        log=folder / "oidc-provider.log",
        port=port,
    ):
        yield OidcProvider(f"http://127.0.0.1:{port}", key)
