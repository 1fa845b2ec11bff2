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
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.process import free_port
from tests.support.page_server import serve_pages
from tests.support.samples import build_identity
from tests.support.sign_ins import consent_page

PORT = free_port()
CALLBACK = f"http://127.0.0.1:{PORT}/oauth/callback"
SECRET = secrets.token_urlsafe(24)


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OidcProvider]]:
    """Two that know Byline by the same id and secret, as hostile ones would see to."""
    client = [RegisteredClient("byline", SECRET, (CALLBACK,))]
    with (
        oidc_provider(tmp_path_factory.mktemp("honest"), client) as honest,
        oidc_provider(tmp_path_factory.mktemp("other"), client) as other,
    ):
        yield {"honest": honest, "other": other}


@dataclass(frozen=True)
class AttackSetup:
    """Services of a gateway, and two people who were asked."""

    services: Services
    providers: dict[str, OidcProvider]
    alice: Principal
    bob: Principal

    async def ask(self, name: str, principal: Principal) -> AuthorizationRequest:
        identity = build_identity(principal, f"run-{principal.subject}-{name}")
        await self.services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        connection = await self.services.catalogue.get_connection(name)
        parked_action = ParkedAction("w", "r", f"{name}-{principal.id}")
        requirement = await self.services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, parked_action, run_id=identity.run_id
        )
        assert requirement is not None
        request = await self.services.authorization_requests.find_request(requirement.request_id)
        assert request is not None
        return request

    async def build_answer(self, name: str, principal: Principal, account: str) -> dict[str, str]:
        """What the provider sends this person's browser back with, on their way in as `account`."""
        request = await self.ask(name, principal)
        address = await consent_page(self.services, request, f"session of {principal.subject}")
        async with Browser(stop_at=CALLBACK) as browser:
            page = await self.providers[name].let_in(await browser.open(address), account)
        return dict(parse_qsl(urlsplit(page.url).query))

    async def read_refusal(self, parameters: dict[str, str], principal: Principal, session: str = "") -> str:
        """Why the answer is refused, which is in the trail; nobody has a grant of it."""
        before = await self._count_refusals()
        with pytest.raises(AuthorizationRefused) as error_info:
            await self.services.sign_ins.finish_redirect(
                parameters, principal, session or f"session of {principal.subject}"
            )
        assert len(await self._count_refusals()) == len(before) + 1
        for person in (self.alice, self.bob):
            assert await self.services.grants.list_grants(person.id) == []
        return str(error_info.value)

    async def _count_refusals(self) -> list[str | None]:
        """The connections at which somebody was refused, as far as they are known, the latest last."""
        return [
            line.event.get("connection")
            for line in await self.services.trail.find_lines()
            if line.kind == "authorization.refused"
        ]


def declare_connection(name: str, issuer: str) -> Connection:
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
async def attack_setup(tmp_path: Path, providers: dict[str, OidcProvider]) -> AsyncIterator[AttackSetup]:
    async with serve_pages(tmp_path, port=PORT, environment={"SECRET": SECRET}) as byline:
        services = byline.services
        await services.catalogue.store_connections(
            [declare_connection(name, oidc.issuer) for name, oidc in providers.items()]
        )
        alice = await services.principals.resolve_principal("https://id.example", "alice", "Alice Liddell")
        bob = await services.principals.resolve_principal("https://id.example", "bob", "Bob Baker")
        yield AttackSetup(services, providers, alice, bob)


async def test_a_code_that_was_swapped_for_anothers_is_worth_nothing(attack_setup: AttackSetup) -> None:
    hers = await attack_setup.build_answer("honest", attack_setup.alice, "alice")
    his = await attack_setup.build_answer("honest", attack_setup.bob, "bob")

    assert "did not accept the sign-in (invalid_grant)" in await attack_setup.read_refusal(
        {**hers, "code": his["code"]}, attack_setup.alice
    )
    assert await attack_setup._count_refusals() == ["honest"]
    assert "used already" in await attack_setup.read_refusal(hers, attack_setup.alice)


async def test_an_answer_goes_to_whom_it_was_begun_for_and_in_their_browser_alone(
    attack_setup: AttackSetup,
) -> None:
    hers = await attack_setup.build_answer("honest", attack_setup.alice, "alice")

    assert "begun by somebody else" in await attack_setup.read_refusal(hers, attack_setup.bob)
    assert "in another browser" in await attack_setup.read_refusal(
        hers, attack_setup.alice, session="a browser of hers"
    )
    assert "not known" in await attack_setup.read_refusal(
        {**hers, "state": secrets.token_urlsafe(32)}, attack_setup.alice
    )


@pytest.mark.parametrize("iss", ["other", None, "https://honest.example"])
async def test_an_answer_of_one_provider_is_not_taken_for_anothers(
    attack_setup: AttackSetup, iss: str | None
) -> None:
    hers = await attack_setup.build_answer("honest", attack_setup.alice, "alice")
    mixed_up = {name: value for name, value in hers.items() if name != "iss"}
    if iss is not None:
        mixed_up["iss"] = attack_setup.providers[iss].issuer if iss in attack_setup.providers else iss

    assert "did not come from the sign-in service of Honest" in await attack_setup.read_refusal(
        mixed_up, attack_setup.alice
    )
