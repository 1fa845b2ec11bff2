"""Holds the keys that people type on a page: checked upstream, sealed, sent where they belong, told to nobody."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from starlette.responses import JSONResponse

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.db.tables import GrantRow
from engine.errors import AuthorizationExpired, AuthorizationRefused, ConnectionMisconfigured, KeyRefused
from engine.identity.model import Principal
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient
from engine.runs.outcome import Finished
from engine.settings import OutgoingSettings
from engine.sign_in.methods import SignInMethods, find_token_place
from engine.sign_in.typed_keys import TypedKeySignIn
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser
from tests.support.foreign.kinto import Kinto, kinto_server
from tests.support.foreign.oidc_provider import oidc_provider
from tests.support.page_server import PageServer, serve_pages
from tests.support.platform import CONTOSO, NORTHWIND, Platform
from tests.support.receivers import run_receiver
from tests.support.samples import build_identity
from tests.support.sign_ins import checked, resources

READ = {"account_id": NORTHWIND}
WHO = "/services/oauth2/userinfo"
CHECK = {"path": WHO, "account": "/preferred_username"}
HERE = OutgoingSettings(allow_http=True, allow_private=True)


def declare_key_connection(url: str, sign_in: str, **key: Any) -> Connection:
    """A system that is signed in to by a key."""
    return Connection.model_validate(
        {
            "name": "crm",
            "title": "Acme CRM",
            "system": "salesforce",
            "mode": "shared" if "secret" in key else "user",
            "base_url": url,
            "sign_in": sign_in,
            "key": key,
            "scopes": ["api"],
        }
    )


async def typed_in(
    connection: Connection, outgoing: OutgoingClient, secret: str, username: str = ""
) -> UpstreamTokens:
    """What comes of a key that somebody types, without a request that it answers."""
    way = SignInMethods(resources(outgoing, {})).create_method(connection)
    assert isinstance(way, TypedKeySignIn)
    return await way.accept_typed_key(secret, username, ("api",))


async def type_key(platform: Platform, request: AuthorizationRequest, secret: str) -> None:
    await platform.services.sign_ins.finish_form(request, platform.alice, {"secret": secret})


async def test_a_run_waits_for_the_key_that_its_person_types_and_acts_with_it(platform: Platform) -> None:
    crm = platform.systems["crm"]
    await platform.services.catalogue.store_connections(
        [declare_key_connection(crm.url, "personal_access_token", check=CHECK)]
    )
    token = await crm.fetch_access_token("alice", "api")
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)

    with pytest.raises(KeyRefused, match="does not accept this"):
        await type_key(platform, request, secrets.token_urlsafe(24))
    await type_key(platform, request, f"  {token}\n")

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    (account_request,) = [
        api_request for api_request in platform.list_requests("crm") if api_request["path"] != WHO
    ]
    assert (account_request["status"], account_request["account"]) == (200, crm.find_account("alice"))
    (refused_event,) = await platform.list_trail_events("authorization.refused")
    (granted_event,) = await platform.list_trail_events("authorization.granted")
    assert (refused_event["error"], granted_event["account"]) == ("key_refused", crm.find_account("alice"))
    assert (
        token not in f"{await platform.list_trail_events('action.ended', run)}{refused_event}{granted_event}"
    )
    stored_request = await platform.services.authorization_requests.find_request(request.id)
    assert stored_request is not None
    with pytest.raises(AuthorizationExpired):
        await type_key(platform, stored_request, token)


async def test_a_key_that_the_upstream_takes_no_more_is_asked_for_again(platform: Platform) -> None:
    crm = platform.systems["crm"]
    await platform.services.catalogue.store_connections(
        [declare_key_connection(crm.url, "personal_access_token")]
    )
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await type_key(platform, request, "of-last-year")
    (again,) = await platform.wait_for_requests(run)
    await type_key(platform, again, await crm.fetch_access_token("alice", "api"))

    assert isinstance(await platform.wait_for_outcome(run), Finished)


async def test_a_key_of_another_account_that_is_typed_for_one_tool_is_used_by_that_tool(
    platform: Platform,
) -> None:
    crm = platform.systems["crm"]
    connection = declare_key_connection(crm.url, "personal_access_token", check=CHECK)
    await platform.services.catalogue.store_connections([connection])
    await platform.give_grant("crm", platform.alice)
    hers, bobs = crm.find_account("alice"), crm.find_account("bob")
    await platform.services.answer_recorder.choose_account(connection, platform.alice, hers)
    await platform.services.grant_removal.remove_own_grant(connection, platform.alice)

    run = await platform.start_run("read_once", {"account_id": CONTOSO}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    key = await crm.fetch_access_token("bob", "api")
    await platform.services.sign_ins.finish_form(
        request, platform.alice, {"secret": key}, tool_name="read_once"
    )

    assert request.request_kind == "choice"
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert (await platform.services.accounts.list_choices(platform.alice.id))["crm"] == {
        "": hers,
        "read_once": bobs,
    }
    assert {
        api_request["account"] for api_request in platform.list_requests("crm") if api_request["path"] != WHO
    } == {bobs}


@pytest.fixture
async def byline(tmp_path: Path) -> AsyncIterator[PageServer]:
    async with serve_pages(tmp_path, environment={"KEY": "of the service", "BROKEN": "two\nlines"}) as here:
        yield here


async def alice(byline: PageServer, browser: Browser) -> Principal:
    await byline.sign_in(browser, "alice")
    (principal,) = await byline.services.principals.find_by_name("Alice Liddell")
    return principal


async def ask(byline: PageServer, connection: Connection, principal: Principal) -> str:
    """The link that an action of hers waits behind."""
    await byline.services.catalogue.store_connections([connection])
    identity = build_identity(principal)
    await byline.services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
    requirement = await byline.services.authorization_requests.require_authorization(
        identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert requirement is not None
    return f"{byline.url}/connect/{requirement.request_id}"


async def read_state(byline: PageServer, link: str) -> str:
    stored_request = await byline.services.authorization_requests.find_request(link.rpartition("/")[2])
    assert stored_request is not None
    return stored_request.state


async def list_grant_rows(byline: PageServer) -> list[GrantRow]:
    async with byline.services.database.open_read_session() as session:
        return list((await session.exec(select(GrantRow))).all())


async def test_a_key_is_typed_on_a_page_that_says_where_it_goes_and_shows_it_to_nobody(
    byline: PageServer,
) -> None:
    creation_url = "https://crm.example.com/settings/keys"
    async with run_receiver(
        [JSONResponse({}, 401), JSONResponse({"me": {"mail": "alice@crm.example"}})]
    ) as crm:
        url = f"http://127.0.0.1:{crm.port}"
        key = {
            "header": "X-Api-Key",
            "check": {"path": "/me", "account": "/me/mail"},
            "made_at": creation_url,
        }
        async with Browser() as browser:
            principal = await alice(byline, browser)
            link = await ask(byline, declare_key_connection(url, "api_key", **key), principal)
            question = await browser.open(link)
            policy = (await browser._client.get(link)).headers["content-security-policy"]
            empty = await question.form(submit="Connect", secret="  ")
            wrong = await empty.form(submit="Connect", secret="planted-but-wrong")
            result_page = await wrong.form(submit="Connect", secret="planted-and-right")

    (grant,) = await byline.services.grants.list_grants(principal.id)
    assert "form-action 'self'" in policy
    assert all(text_part in question.text for text_part in ("127.0.0.1", creation_url, 'type="password"'))
    assert (empty.status, wrong.status, result_page.status) == (422, 422, 200)
    assert "fill in every field" in empty.text
    assert "does not accept this" in wrong.text
    assert "Acme CRM is connected" in result_page.text
    assert "planted" not in question.text + empty.text + wrong.text + result_page.text
    assert [post.headers["x-api-key"] for post in crm.posts] == ["planted-but-wrong", "planted-and-right"]
    assert grant.account == "alice@crm.example"
    assert "planted" not in f"{await list_grant_rows(byline)}{await byline.services.trail.find_lines()}"


async def test_a_key_may_be_declined_and_is_taken_from_nobody_else(byline: PageServer) -> None:
    connection = declare_key_connection("https://crm.example.com", "api_key")
    async with Browser() as browser, Browser() as his:
        principal = await alice(byline, browser)
        link = await ask(byline, connection, principal)
        await byline.sign_in(his, "bob")
        opened_page = await his.open(link)
        page = await his.open(f"{byline.url}/")
        token = page.text.split('name="csrf_token" value="')[1].split('"')[0]
        fields = {"csrf_token": token, "decision": "connect", "secret": "of bob"}
        form_response = await his._client.post(link, data=fields)
        (bob,) = await byline.services.principals.find_by_name("Bob Baker")
        request = await byline.services.authorization_requests.find_request(link.rpartition("/")[2])
        assert request is not None
        with pytest.raises(AuthorizationRefused, match="not asked for it"):
            await byline.services.sign_ins.finish_form(request, bob, {"secret": "of bob"})
        elsewhere = await (await browser.open(link)).browser._client.post(
            link, data={"csrf_token": await read_form_token(browser, link), "decision": "continue"}
        )
        declined_page = await (await browser.open(link)).form(submit="Decline")

    assert (opened_page.status, form_response.status_code) == (403, 403)
    assert elsewhere.status_code == 503
    assert "type the key" in elsewhere.text
    assert "You declined Acme CRM" in declined_page.text
    assert await read_state(byline, link) == "denied"
    assert await list_grant_rows(byline) == []


async def read_form_token(browser: Browser, link: str) -> str:
    return (await browser.open(link)).text.split('name="csrf_token" value="')[1].split('"')[0]


async def test_a_shared_key_is_the_administrators_and_is_carried_where_it_belongs(byline: PageServer) -> None:
    shared_key = {"header": "X-Api-Key", "prefix": "Token ", "secret": {"env": "KEY"}}
    connection = declare_key_connection(
        "https://crm.example.com", "personal_access_token", **{**shared_key, "secret": {"env": "BROKEN"}}
    )

    with pytest.raises(ConnectionMisconfigured, match="cannot be sent"):
        await byline.services.grants.find_credential(connection, "anybody")
    no_spaces = declare_key_connection(
        "https://crm.example.com", "api_key", **{**shared_key, "secret": {"env": "KEY"}}
    )
    with pytest.raises(ConnectionMisconfigured, match="holds no spaces"):
        await byline.services.grants.find_credential(no_spaces, "anybody")
    basic = declare_key_connection(
        "https://crm.example.com", "basic", username="robot", secret={"env": "KEY"}
    )
    credential = await byline.services.grants.find_credential(basic, "anybody")

    assert find_token_place(no_spaces) == ("X-Api-Key", "Token ")
    assert credential is not None
    assert (credential.account, credential.scopes) == ("robot (shared)", ("api",))
    assert find_token_place(basic) == ("Authorization", "Basic ")


@pytest.fixture(scope="module")
def kinto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinto]:
    folder = tmp_path_factory.mktemp("kinto")
    with oidc_provider(folder) as provider, kinto_server(folder, provider.issuer) as here:
        yield here


async def test_a_username_and_a_password_are_what_a_system_of_others_knows_a_person_by(kinto: Kinto) -> None:
    connection = declare_key_connection(kinto.url, "basic", check={"path": "/", "account": "/user/id"})
    async with OutgoingClient(HERE) as outgoing:
        hers = await typed_in(connection, outgoing, "of älice", "alice")
        his = await typed_in(connection, outgoing, "of bob", "bob")
        with pytest.raises(KeyRefused, match="no colon"):
            await typed_in(connection, outgoing, "of alice", "al:ice")

    assert hers.account.startswith("basicauth:")
    assert his.account.startswith("basicauth:")
    assert hers.account != his.account


@pytest.mark.parametrize("secret", ["", "two words", "two\nlines", "schlüssel", "x" * 9000])
async def test_what_can_be_no_key_is_not_sent_to_find_out(secret: str) -> None:
    async with run_receiver() as crm, OutgoingClient(HERE) as outgoing:
        connection = declare_key_connection(f"http://127.0.0.1:{crm.port}", "api_key", check={"path": "/me"})
        with pytest.raises(KeyRefused) as error_info:
            await typed_in(connection, outgoing, secret)

    assert crm.posts == []
    assert not secret or secret not in str(error_info.value)


async def test_a_check_goes_nowhere_inside_the_network() -> None:
    async with OutgoingClient(OutgoingSettings()) as outgoing:
        connection = declare_key_connection(
            "https://169.254.169.254", "api_key", check={"path": "/latest/meta-data"}
        )
        with pytest.raises(ConnectionMisconfigured, match="is not on the public Internet"):
            await typed_in(connection, outgoing, "key")


async def test_a_check_says_whether_a_wrong_key_is_refused_and_whether_the_services_own_is_good() -> None:
    answers = [
        JSONResponse({}, 401),
        JSONResponse({}),
        JSONResponse({}, 500),
        JSONResponse({"me": "robot"}),
        JSONResponse({}, 403),
    ]
    async with run_receiver(answers) as crm, OutgoingClient(HERE) as outgoing:
        url, check = f"http://127.0.0.1:{crm.port}", {"path": "/me", "account": "me"}
        people, shared_key = declare_key_connection(url, "api_key", check=check), {"secret": {"env": "KEY"}}
        service = declare_key_connection(url, "api_key", check=check, **shared_key)
        unchecked_connection = declare_key_connection(url, "api_key")

        async def check_connection(
            connection: Connection, environment: dict[str, str]
        ) -> list[tuple[str, str]]:
            results = await checked(connection, environment, outgoing)
            return [
                (result.checked_part, result.state) for result in results if result.checked_part != "upstream"
            ]

        check_results = [await check_connection(people, {}) for _ in range(3)]
        own = [await check_connection(service, {"KEY": "k"}) for _ in range(2)]
        missing, unclear = (
            await check_connection(service, {}),
            await check_connection(unchecked_connection, {}),
        )

    assert check_results == [[("check", "ok")], [("check", "wrong")], [("check", "wrong")]]
    assert own == [[("secret", "ok"), ("check", "ok")], [("secret", "ok"), ("check", "wrong")]]
    assert (missing, unclear) == ([("secret", "wrong")], [("check", "unclear")])
