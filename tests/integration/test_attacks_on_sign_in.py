"""Tries what an attacker would with the answers of sign-in services; each try is refused, recorded, and of no use."""

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.errors import AuthorizationRefused
from engine.identity.model import Principal
from engine.services import Services
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser
from tests.data.samples import identity_of
from tests.foreign.oidc_provider import Client, OidcProvider, oidc_provider
from tests.foreign.process import free_port
from tests.pages import serving
from tests.signing_in import consent_page

PORT = free_port()
CALLBACK = f"http://127.0.0.1:{PORT}/oauth/callback"
SECRET = secrets.token_urlsafe(24)


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OidcProvider]]:
    """Two that know Byline by the same id and secret, as hostile ones would see to."""
    client = [Client("byline", SECRET, (CALLBACK,))]
    with (
        oidc_provider(tmp_path_factory.mktemp("honest"), client) as honest,
        oidc_provider(tmp_path_factory.mktemp("other"), client) as other,
    ):
        yield {"honest": honest, "other": other}


@dataclass(frozen=True)
class Stage:
    """Services of a gateway, and two people who were asked."""

    services: Services
    providers: dict[str, OidcProvider]
    alice: Principal
    bob: Principal

    async def asked(self, name: str, principal: Principal) -> AuthorizationRequest:
        identity = identity_of(principal, f"run-{principal.subject}-{name}")
        await self.services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        connection = await self.services.catalogue.get_connection(name)
        parked = ParkedAction("w", "r", f"{name}-{principal.id}")
        required = await self.services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, parked, run_id=identity.run_id
        )
        assert required is not None
        request = await self.services.authorization_requests.find_request(required.request_id)
        assert request is not None
        return request

    async def answer(self, name: str, principal: Principal, account: str) -> dict[str, str]:
        """What the provider sends this person's browser back with, on their way in as `account`."""
        request = await self.asked(name, principal)
        address = await consent_page(self.services, request, f"session of {principal.subject}")
        async with Browser(stop_at=CALLBACK) as browser:
            page = await self.providers[name].let_in(await browser.open(address), account)
        return dict(parse_qsl(urlsplit(page.url).query))

    async def refused(self, parameters: dict[str, str], principal: Principal, session: str = "") -> str:
        """Why the answer is refused, which is in the trail; nobody has a grant of it."""
        before = await self._refusals()
        with pytest.raises(AuthorizationRefused) as refused:
            await self.services.sign_ins.finish_redirect(
                parameters, principal, session or f"session of {principal.subject}"
            )
        assert len(await self._refusals()) == len(before) + 1
        for person in (self.alice, self.bob):
            assert await self.services.grants.list_grants(person.id) == []
        return str(refused.value)

    async def _refusals(self) -> list[str | None]:
        """The connections at which somebody was refused, as far as they are known, the latest last."""
        return [
            line.event.get("connection")
            for line in await self.services.trail.find_lines()
            if line.kind == "authorization.refused"
        ]


def declared(name: str, issuer: str) -> Connection:
    return Connection.model_validate(
        {
            "name": name,
            "title": name.title(),
            "system": name,
            "mode": "user",
            "base_url": "https://api.example.com",
            "scopes": ["openid"],
            "client_id": "byline",
            "client_secret": {"env": "SECRET"},
            "provider": {"issuer": issuer, "account_claim": "sub"},
        }
    )


@pytest.fixture
async def stage(tmp_path: Path, providers: dict[str, OidcProvider]) -> AsyncIterator[Stage]:
    async with serving(tmp_path, port=PORT, environment={"SECRET": SECRET}) as byline:
        services = byline.services
        await services.catalogue.store_connections(
            [declared(name, each.issuer) for name, each in providers.items()]
        )
        alice = await services.principals.resolve_principal("https://id.example", "alice", "Alice Liddell")
        bob = await services.principals.resolve_principal("https://id.example", "bob", "Bob Baker")
        yield Stage(services, providers, alice, bob)


async def test_a_code_that_was_swapped_for_anothers_is_worth_nothing(stage: Stage) -> None:
    hers = await stage.answer("honest", stage.alice, "alice")
    his = await stage.answer("honest", stage.bob, "bob")

    assert "did not accept the sign-in (invalid_grant)" in await stage.refused(
        {**hers, "code": his["code"]}, stage.alice
    )
    assert await stage._refusals() == ["honest"]
    assert "used already" in await stage.refused(hers, stage.alice)


async def test_an_answer_goes_to_whom_it_was_begun_for_and_in_their_browser_alone(stage: Stage) -> None:
    hers = await stage.answer("honest", stage.alice, "alice")

    assert "begun by somebody else" in await stage.refused(hers, stage.bob)
    assert "in another browser" in await stage.refused(hers, stage.alice, session="a browser of hers")
    assert "not known" in await stage.refused({**hers, "state": secrets.token_urlsafe(32)}, stage.alice)


@pytest.mark.parametrize("iss", ["other", None, "https://honest.example"])
async def test_an_answer_of_one_provider_is_not_taken_for_anothers(stage: Stage, iss: str | None) -> None:
    hers = await stage.answer("honest", stage.alice, "alice")
    mixed_up = {name: value for name, value in hers.items() if name != "iss"}
    if iss is not None:
        mixed_up["iss"] = stage.providers[iss].issuer if iss in stage.providers else iss

    assert "did not come from the sign-in service of Honest" in await stage.refused(mixed_up, stage.alice)
