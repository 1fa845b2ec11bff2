from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from engine.wire import OUTCOME_META
from tests.e2e.rounds import answer, call_tool
from tests.platform import NORTHWIND, Platform
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
    assert by_bob == {**crm, "grant": None, "accounts": []}
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
    declared = await platform.services.catalogue.get_connection("crm")
    changed = {"name": "crm_for_all", "mode": "shared", "sign_in": "client_credentials"}
    shared = declared.model_copy(update=changed)
    await platform.services.catalogue.store_connections([shared])
    async with rest.calling_as(await rest.person("alice", "Ann")) as alice:
        refused = await alice.delete("/connections/crm_for_all/grant")
        shown = (await alice.get("/connections/crm_for_all")).json()

    assert refused.status_code == 403
    assert (shown["mode"], shown["grant"]) == ("shared", None)


async def test_of_several_accounts_one_is_chosen_for_every_tool_and_another_for_one_tool(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("alice", "Ann")
    names = {name: platform.systems["crm"].account(name) for name in ("alice", "bob")}
    for name in names:
        await platform.grant("crm", ann, account=name)
    async with rest.calling_as(ann) as alice:
        unsaid = (await alice.get("/connections/crm")).json()
        await alice.put("/connections/crm/choice", json={"account": names["bob"]})
        of_tool = {"account": names["alice"], "tool": "read_once"}
        said = (await alice.put("/connections/crm/choice", json=of_tool)).json()
        taken_back = await alice.delete("/connections/crm/choice", params={"tool": "read_once"})
        refused = [
            await alice.put("/connections/crm/choice", json={"account": "somebody@else.example"}),
            await alice.put("/connections/crm/choice", json={"account": names["bob"], "tool": "nothing"}),
            await alice.put("/connections/nowhere/choice", json={"account": names["bob"]}),
            await alice.delete("/connections/crm/grant"),
            await alice.delete("/connections/crm/grant", params={"account": "somebody@else.example"}),
        ]
        given_up = await alice.delete("/connections/crm/grant", params={"account": names["bob"]})
        left = (await alice.get("/connections/crm")).json()

    assert (unsaid["grant"], unsaid["chosen"]) == (None, [])
    assert {each["account"] for each in unsaid["accounts"]} == set(names.values())
    assert said["grant"]["account"] == names["bob"]
    assert said["chosen"] == [{"tool": None, "account": names["bob"]}, of_tool]
    assert (taken_back.status_code, given_up.status_code) == (204, 204)
    assert [(answer.status_code, answer.json()["type"].rpartition(":")[2]) for answer in refused] == [
        (404, "account_unknown"),
        (404, "tool_unknown"),
        (404, "connection_unknown"),
        (409, "account_unclear"),
        (404, "grant_unknown"),
    ]
    assert [each["account"] for each in left["accounts"]] == [names["alice"]]
    assert (left["grant"], left["chosen"]) == (None, [{"tool": None, "account": names["bob"]}])


async def test_another_account_is_connected_by_a_link_that_is_asked_for(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("alice", "Ann")
    await platform.grant("crm", ann)
    async with rest.calling_as(ann) as alice, rest.calling_as(await rest.person("bob", "Ben")) as bob:
        begun = await alice.post("/connections/crm/sign-ins")
        again = await alice.post("/connections/crm/sign-ins")
        address = begun.headers["Location"].removeprefix("/api/v1")
        listed = (await alice.get("/sign-ins")).json()["items"]
        of_others = [await bob.get(address), (await bob.get("/sign-ins")).json()["items"]]
        request = await platform.services.authorization_requests.find_request(begun.json()["id"])
        assert request is not None
        await platform.consent(request, replace(ann, subject="alice"), account="bob")
        answered = (await alice.get(address)).json()
        left = (await alice.get("/sign-ins")).json()["items"]
        accounts = (await alice.get("/connections/crm")).json()["accounts"]

    asked = again.json()
    assert (begun.status_code, begun.json()["url"], listed) == (201, asked["url"], [asked])
    assert (asked["connection"], asked["state"], asked["account"]) == ("crm", "open", None)
    assert (asked["title"], asked["url"]) == ("Sign in to Acme CRM", f"{rest.url}/connect/{asked['id']}")
    assert (of_others[0].status_code, of_others[1]) == (404, [])
    assert of_others[0].json()["type"] == "urn:byline:error:sign_in_unknown"
    assert (answered, left) == ({**asked, "state": "granted"}, [])
    assert {each["account"] for each in accounts} == {
        platform.systems["crm"].account(name) for name in ("alice", "bob")
    }


async def test_a_sign_in_that_a_run_waits_for_is_listed_beside_those_that_were_asked_for(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("alice", "Ann")
    run = await platform.start("read_once", {"account_id": NORTHWIND}, ann)
    (awaited,) = await platform.asked(run)
    async with rest.calling_as(ann) as alice:
        ahead = (await alice.post("/connections/support/sign-ins")).json()
        listed = (await alice.get("/sign-ins")).json()["items"]
        await platform.services.authorization_requests.deny_request(awaited.id, ann)
        denied = (await alice.get(f"/sign-ins/{awaited.id}")).json()

    assert [each["id"] for each in listed] == [awaited.id, ahead["id"]]
    assert denied["state"] == "denied"


async def test_a_link_to_connect_takes_a_person_and_a_connection_of_their_own(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("alice", "Ann")
    declared = await platform.services.catalogue.get_connection("crm")
    changed = {"name": "crm_for_all", "mode": "shared", "sign_in": "client_credentials"}
    await platform.services.catalogue.store_connections([declared.model_copy(update=changed)])
    async with rest.calling_as(ann) as alice:
        shared = await alice.post("/connections/crm_for_all/sign-ins")
        unknown = await alice.post("/connections/nowhere/sign-ins")
        token = (await alice.post("/tokens", json={"name": "nightly"})).json()["token"]
        by_token = await alice.post("/connections/crm/sign-ins", headers={"Authorization": f"Bearer {token}"})

    assert (shared.status_code, by_token.status_code, unknown.status_code) == (403, 403, 404)
    assert shared.json()["detail"] == "Nobody connects an account of their own to Acme CRM: it is shared."
    assert await platform.trail("authorization.requested") == []


async def test_a_token_for_some_tools_sees_what_these_use_and_with_which_account(platform: Platform) -> None:
    async with serving(platform, mcp=True) as rest:
        ann = await rest.person("alice", "Ann")
        hers, other = (platform.systems["crm"].account(name) for name in ("alice", "bob"))
        await platform.grant("crm", ann)
        await platform.grant("crm", ann, account="bob")
        await platform.grant("support", ann)
        crm = await platform.services.catalogue.get_connection("crm")
        await platform.services.answer_recorder.choose_account(crm, ann, other, tool_name="read_widely")
        await platform.services.answer_recorder.choose_account(crm, ann, hers, tool_name="read_once")
        async with rest.calling_as(ann) as alice:
            await alice.post("/connections/support/sign-ins")
            made = await alice.post("/tokens", json={"name": "nightly", "tools": ["read_once"]})
            token = made.json()["token"]
            alice.headers["Authorization"] = f"Bearer {token}"
            listed = (await alice.get("/connections")).json()["items"]
            one = (await alice.get("/connections/crm")).json()
            checked = (await alice.get("/tools/read_once/readiness")).json()
            sign_ins = (await alice.get("/sign-ins")).json()["items"]
            refused = [
                await alice.get("/connections/support"),
                await alice.get("/tools/comment_on_ticket/readiness"),
            ]
        by_model, refused_model = [
            answer(await call_tool(f"{rest.url}/mcp", token, "byline_check", {"tool": tool}))["result"]
            for tool in ("read_once", "comment_on_ticket")
        ]

    assert ([each["name"] for each in listed], listed[0], sign_ins) == (["crm"], one, [])
    assert [each["account"] for each in one["accounts"]] == [hers]
    assert (one["grant"], one["chosen"]) == (None, [{"tool": "read_once", "account": hers}])
    assert [each["account"] for each in checked["connections"]] == [hers]
    assert by_model["structuredContent"] == checked
    assert refused_model["_meta"][OUTCOME_META]["error"] == "not_allowed"
    assert [each.status_code for each in refused] == [403, 403]
    for told in (listed, checked, by_model, refused_model, *(each.json() for each in refused)):
        assert other not in str(told)


async def test_what_a_call_would_wait_for_is_said_before_it_and_starts_nothing(
    rest: Rest, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    ann, tool = await rest.person("alice", "Ann"), "comment_on_ticket"
    where = f"{rest.url}/connect/tools/{tool}"
    async with rest.calling_as(ann) as alice:

        async def asked() -> tuple[bool, str | None, dict[str, object]]:
            told = (await alice.get(f"/tools/{tool}/readiness")).json()
            (state,) = [each for each in told["connections"] if each["name"] == "support"]
            return told["would_wait"], told["url"], {key: state[key] for key in ("state", "lacking")}

        missing = await asked()
        await platform.grant("support", ann)
        narrow = await asked()
        await platform.grant("support", ann, "tickets:read tickets:write", account="bob")
        unclear = await asked()
        support = await platform.services.catalogue.get_connection("support")
        bobs = platform.systems["support"].account("bob")
        await platform.services.answer_recorder.choose_account(support, ann, bobs, tool_name=tool)
        ready = await asked()
        unknown = await alice.get("/tools/nothing/readiness")
        runs = (await alice.get("/runs")).json()["items"]

    both = ["tickets:read", "tickets:write"]
    assert missing == (True, where, {"state": "missing", "lacking": both})
    assert narrow == (True, where, {"state": "too_narrow", "lacking": ["tickets:write"]})
    assert unclear == (True, where, {"state": "choice_needed", "lacking": both})
    assert ready == (False, None, {"state": "connected", "lacking": []})
    assert (unknown.status_code, runs, platform.requests("support")) == (404, [], [])


async def test_a_model_is_told_as_much_and_which_link_to_show(platform: Platform) -> None:
    async with serving(platform, mcp=True) as rest:
        ann = await rest.person("alice", "Ann")
        token = await rest.token(ann, "/mcp")
        told, unfit, unknown = [
            answer(await call_tool(f"{rest.url}/mcp", token, "byline_check", arguments))
            for arguments in ({"tool": "read_once"}, {}, {"tool": "nothing"})
        ]
        async with rest.calling_as(ann) as alice:
            over_rest = (await alice.get("/tools/read_once/readiness")).json()

    assert told["result"]["structuredContent"] == over_rest
    assert f"{rest.url}/connect/tools/read_once" in told["result"]["content"][0]["text"]
    assert not told["result"].get("isError")
    assert unfit["result"]["_meta"][OUTCOME_META]["error"] == "arguments_invalid"
    assert unknown["error"]["code"] == -32602


async def _pages(client: httpx2.AsyncClient) -> AsyncIterator[list[dict[str, object]]]:
    after: str | None = ""
    while after is not None:
        asked: dict[str, str | int] = {"limit": 1, **({"after": after} if after else {})}
        page = (await client.get("/connections", params=asked)).json()
        after = page["next_cursor"]
        yield page["items"]
