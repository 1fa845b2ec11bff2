from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.platform import Platform
from tests.rest import Rest, serving


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        yield rest


async def test_everybody_sees_every_connection_with_their_own_grant_alone(
    rest: Rest, platform: Platform
) -> None:
    ann, ben = await rest.person("alice", "Ann"), await rest.person("bob", "Ben")
    tokens = await platform.grant("crm", ann)
    async with rest.calling_as(ann) as alice, rest.calling_as(ben) as bob:
        seen = {each["name"]: each for each in (await alice.get("/connections")).json()["items"]}
        by_bob = (await bob.get("/connections/crm")).json()
        pages = [page async for page in _pages(alice)]

    crm = seen["crm"]
    assert crm["mode"] == "user"
    assert crm["grant"]["account"] == platform.systems["crm"].account("alice")
    assert crm["grant"]["scopes"] == list(tokens.scopes)
    assert by_bob == {**crm, "grant": None}
    assert [name for name, each in seen.items() if each["grant"]] == ["crm"]
    assert [each["name"] for page in pages for each in page] == sorted(seen)


async def test_a_grant_that_is_given_up_is_forgotten_revoked_upstream_and_in_the_trail(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("alice", "Ann")
    tokens = await platform.grant("crm", ann)
    async with rest.calling_as(ann) as alice:
        given_up = await alice.delete("/connections/crm/grant")
        again = await alice.delete("/connections/crm/grant")
        left = (await alice.get("/connections/crm")).json()["grant"]

    assert (given_up.status_code, again.status_code, left) == (204, 404, None)
    assert again.json()["type"] == "urn:byline:error:grant_unknown"
    upstream = platform.systems["crm"].get("/services/oauth2/userinfo", tokens.access_token)
    assert upstream.status_code in {401, 403}
    (removed,) = await platform.trail("grant.removed")
    assert (removed["principal"]["name"], removed["connection"]) == ("Ann", "crm")


async def test_the_grant_of_a_shared_connection_is_not_a_persons_to_give_up(
    rest: Rest, platform: Platform
) -> None:
    declared = await platform.services.catalogue.get("crm")
    shared = declared.model_copy(update={"name": "crm_for_all", "mode": "shared"})
    await platform.services.catalogue.declare([shared])
    async with rest.calling_as(await rest.person("alice", "Ann")) as alice:
        refused = await alice.delete("/connections/crm_for_all/grant")
        shown = (await alice.get("/connections/crm_for_all")).json()

    assert refused.status_code == 403
    assert (shown["mode"], shown["grant"]) == ("shared", None)


async def _pages(client: httpx2.AsyncClient) -> AsyncIterator[list[dict[str, object]]]:
    after: str | None = ""
    while after is not None:
        asked: dict[str, str | int] = {"limit": 1, **({"after": after} if after else {})}
        page = (await client.get("/connections", params=asked)).json()
        after = page["next_cursor"]
        yield page["items"]
