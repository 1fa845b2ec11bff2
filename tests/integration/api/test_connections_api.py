from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from engine.wire import OUTCOME_META
from tests.support.api_server import ApiServer, serve_api
from tests.support.mcp_requests import call_tool, read_answer
from tests.support.platform import NORTHWIND, Platform


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        yield api_server


async def test_everybody_sees_every_connection_with_their_own_grant_alone(
    api_server: ApiServer, platform: Platform
) -> None:
    ann, ben = await api_server.add_person("alice", "Ann"), await api_server.add_person("bob", "Ben")
    tokens = await platform.give_grant("crm", ann)
    async with api_server.open_client(ann) as alice, api_server.open_client(ben) as bob:
        connection_by_name = {
            entry["name"]: entry for entry in (await alice.get("/connections")).json()["items"]
        }
        by_bob = (await bob.get("/connections/crm")).json()
        pages = [page async for page in _read_pages(alice)]

    crm = connection_by_name["crm"]
    assert crm["mode"] == "user"
    assert crm["grant"]["account"] == platform.systems["crm"].find_account("alice")
    assert crm["grant"]["scopes"] == list(tokens.scopes)
    assert by_bob == {**crm, "grant": None, "accounts": []}
    assert [name for name, entry in connection_by_name.items() if entry["grant"]] == ["crm"]
    assert [entry["name"] for page in pages for entry in page] == sorted(connection_by_name)


async def test_a_revoked_grant_is_forgotten_revoked_upstream_and_in_the_trail(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("alice", "Ann")
    tokens = await platform.give_grant("crm", ann)
    async with api_server.open_client(ann) as alice:
        removal_response = await alice.delete("/connections/crm/grant")
        again = await alice.delete("/connections/crm/grant")
        left = (await alice.get("/connections/crm")).json()["grant"]

    assert (removal_response.status_code, again.status_code, left) == (204, 404, None)
    assert again.json()["type"] == "urn:byline:error:grant_unknown"
    upstream = platform.systems["crm"].get_path("/services/oauth2/userinfo", tokens.access_token)
    assert upstream.status_code in {401, 403}
    (removed_event,) = await platform.list_trail_events("grant.removed")
    assert (removed_event["principal"]["name"], removed_event["connection"]) == ("Ann", "crm")


async def test_a_person_cannot_revoke_the_grant_of_a_shared_connection(
    api_server: ApiServer, platform: Platform
) -> None:
    declaration = await platform.services.catalogue.get_connection("crm")
    changes = {"name": "crm_for_all", "mode": "shared", "sign_in": "client_credentials"}
    shared_connection = declaration.model_copy(update=changes)
    await platform.services.catalogue.store_connections([shared_connection])
    async with api_server.open_client(await api_server.add_person("alice", "Ann")) as alice:
        refusal = await alice.delete("/connections/crm_for_all/grant")
        connection_document = (await alice.get("/connections/crm_for_all")).json()

    assert refusal.status_code == 403
    assert (connection_document["mode"], connection_document["grant"]) == ("shared", None)


async def test_of_several_accounts_one_is_chosen_for_every_tool_and_another_for_one_tool(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("alice", "Ann")
    names = {name: platform.systems["crm"].find_account(name) for name in ("alice", "bob")}
    for name in names:
        await platform.give_grant("crm", ann, account=name)
    async with api_server.open_client(ann) as alice:
        unsaid = (await alice.get("/connections/crm")).json()
        await alice.put("/connections/crm/choice", json={"account": names["bob"]})
        of_tool = {"account": names["alice"], "tool": "read_once"}
        choice = (await alice.put("/connections/crm/choice", json=of_tool)).json()
        choice_removal = await alice.delete("/connections/crm/choice", params={"tool": "read_once"})
        refusals = [
            await alice.put("/connections/crm/choice", json={"account": "somebody@else.example"}),
            await alice.put("/connections/crm/choice", json={"account": names["bob"], "tool": "nothing"}),
            await alice.put("/connections/nowhere/choice", json={"account": names["bob"]}),
            await alice.delete("/connections/crm/grant"),
            await alice.delete("/connections/crm/grant", params={"account": "somebody@else.example"}),
        ]
        removal = await alice.delete("/connections/crm/grant", params={"account": names["bob"]})
        left = (await alice.get("/connections/crm")).json()

    assert (unsaid["grant"], unsaid["chosen"]) == (None, [])
    assert {account["account"] for account in unsaid["accounts"]} == set(names.values())
    assert choice["grant"]["account"] == names["bob"]
    assert choice["chosen"] == [{"tool": None, "account": names["bob"]}, of_tool]
    assert (choice_removal.status_code, removal.status_code) == (204, 204)
    assert [(answer.status_code, answer.json()["type"].rpartition(":")[2]) for answer in refusals] == [
        (404, "account_unknown"),
        (404, "tool_unknown"),
        (404, "connection_unknown"),
        (409, "account_unclear"),
        (404, "grant_unknown"),
    ]
    assert [account["account"] for account in left["accounts"]] == [names["alice"]]
    assert (left["grant"], left["chosen"]) == (None, [{"tool": None, "account": names["bob"]}])


async def test_another_account_is_connected_by_a_link_that_is_asked_for(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("alice", "Ann")
    await platform.give_grant("crm", ann)
    async with (
        api_server.open_client(ann) as alice,
        api_server.open_client(await api_server.add_person("bob", "Ben")) as bob,
    ):
        sign_in_response = await alice.post("/connections/crm/sign-ins")
        again = await alice.post("/connections/crm/sign-ins")
        address = sign_in_response.headers["Location"].removeprefix("/api/v1")
        listing = (await alice.get("/sign-ins")).json()["items"]
        of_others = [await bob.get(address), (await bob.get("/sign-ins")).json()["items"]]
        request = await platform.services.authorization_requests.find_request(sign_in_response.json()["id"])
        assert request is not None
        await platform.consent(request, replace(ann, subject="alice"), account="bob")
        sign_in_document = (await alice.get(address)).json()
        left = (await alice.get("/sign-ins")).json()["items"]
        accounts = (await alice.get("/connections/crm")).json()["accounts"]

    repeated_sign_in = again.json()
    assert (sign_in_response.status_code, sign_in_response.json()["url"], listing) == (
        201,
        repeated_sign_in["url"],
        [repeated_sign_in],
    )
    assert (repeated_sign_in["connection"], repeated_sign_in["state"], repeated_sign_in["account"]) == (
        "crm",
        "open",
        None,
    )
    assert (repeated_sign_in["title"], repeated_sign_in["url"]) == (
        "Sign in to Acme CRM",
        f"{api_server.url}/connect/{repeated_sign_in['id']}",
    )
    assert (of_others[0].status_code, of_others[1]) == (404, [])
    assert of_others[0].json()["type"] == "urn:byline:error:sign_in_unknown"
    assert (sign_in_document, left) == ({**repeated_sign_in, "state": "granted"}, [])
    assert {account["account"] for account in accounts} == {
        platform.systems["crm"].find_account(name) for name in ("alice", "bob")
    }


async def test_a_sign_in_that_a_run_waits_for_is_listed_beside_those_that_were_asked_for(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("alice", "Ann")
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, ann)
    (awaited_request,) = await platform.wait_for_requests(run)
    async with api_server.open_client(ann) as alice:
        ahead = (await alice.post("/connections/support/sign-ins")).json()
        listing = (await alice.get("/sign-ins")).json()["items"]
        await platform.services.authorization_requests.deny_request(awaited_request.id, ann)
        denied_sign_in = (await alice.get(f"/sign-ins/{awaited_request.id}")).json()

    assert [entry["id"] for entry in listing] == [awaited_request.id, ahead["id"]]
    assert denied_sign_in["state"] == "denied"


async def test_a_link_to_connect_takes_a_person_and_a_connection_of_their_own(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("alice", "Ann")
    declaration = await platform.services.catalogue.get_connection("crm")
    changes = {"name": "crm_for_all", "mode": "shared", "sign_in": "client_credentials"}
    await platform.services.catalogue.store_connections([declaration.model_copy(update=changes)])
    async with api_server.open_client(ann) as alice:
        shared_response = await alice.post("/connections/crm_for_all/sign-ins")
        unknown = await alice.post("/connections/nowhere/sign-ins")
        token = (await alice.post("/tokens", json={"name": "nightly"})).json()["token"]
        by_token = await alice.post("/connections/crm/sign-ins", headers={"Authorization": f"Bearer {token}"})

    assert (shared_response.status_code, by_token.status_code, unknown.status_code) == (403, 403, 404)
    assert (
        shared_response.json()["detail"]
        == "Nobody connects an account of their own to Acme CRM: it is shared."
    )
    assert await platform.list_trail_events("authorization.requested") == []


async def test_a_token_for_some_tools_sees_what_these_use_and_with_which_account(platform: Platform) -> None:
    async with serve_api(platform, mcp=True) as api_server:
        ann = await api_server.add_person("alice", "Ann")
        hers, other = (platform.systems["crm"].find_account(name) for name in ("alice", "bob"))
        await platform.give_grant("crm", ann)
        await platform.give_grant("crm", ann, account="bob")
        await platform.give_grant("support", ann)
        crm = await platform.services.catalogue.get_connection("crm")
        await platform.services.answer_recorder.choose_account(crm, ann, other, tool_name="read_widely")
        await platform.services.answer_recorder.choose_account(crm, ann, hers, tool_name="read_once")
        async with api_server.open_client(ann) as alice:
            await alice.post("/connections/support/sign-ins")
            token_response = await alice.post("/tokens", json={"name": "nightly", "tools": ["read_once"]})
            token = token_response.json()["token"]
            alice.headers["Authorization"] = f"Bearer {token}"
            listing = (await alice.get("/connections")).json()["items"]
            one = (await alice.get("/connections/crm")).json()
            readiness = (await alice.get("/tools/read_once/readiness")).json()
            sign_ins = (await alice.get("/sign-ins")).json()["items"]
            refusals = [
                await alice.get("/connections/support"),
                await alice.get("/tools/comment_on_ticket/readiness"),
            ]
        by_model, refused_model = [
            read_answer(await call_tool(f"{api_server.url}/mcp", token, "byline_check", {"tool": tool}))[
                "result"
            ]
            for tool in ("read_once", "comment_on_ticket")
        ]

    assert ([entry["name"] for entry in listing], listing[0], sign_ins) == (["crm"], one, [])
    assert [entry["account"] for entry in one["accounts"]] == [hers]
    assert (one["grant"], one["chosen"]) == (None, [{"tool": "read_once", "account": hers}])
    assert [entry["account"] for entry in readiness["connections"]] == [hers]
    assert by_model["structuredContent"] == readiness
    assert refused_model["_meta"][OUTCOME_META]["error"] == "not_allowed"
    assert [entry.status_code for entry in refusals] == [403, 403]
    for document in (listing, readiness, by_model, refused_model, *(entry.json() for entry in refusals)):
        assert other not in str(document)


async def test_what_a_call_would_wait_for_is_said_before_it_and_starts_nothing(
    api_server: ApiServer, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    ann, tool = await api_server.add_person("alice", "Ann"), "comment_on_ticket"
    where = f"{api_server.url}/connect/tools/{tool}"
    async with api_server.open_client(ann) as alice:

        async def check_readiness() -> tuple[bool, str | None, dict[str, object]]:
            readiness = (await alice.get(f"/tools/{tool}/readiness")).json()
            (state,) = [entry for entry in readiness["connections"] if entry["name"] == "support"]
            return (
                readiness["would_wait"],
                readiness["url"],
                {key: state[key] for key in ("state", "lacking")},
            )

        missing = await check_readiness()
        await platform.give_grant("support", ann)
        narrow = await check_readiness()
        await platform.give_grant("support", ann, "tickets:read tickets:write", account="bob")
        unclear = await check_readiness()
        support = await platform.services.catalogue.get_connection("support")
        bobs = platform.systems["support"].find_account("bob")
        await platform.services.answer_recorder.choose_account(support, ann, bobs, tool_name=tool)
        ready = await check_readiness()
        unknown = await alice.get("/tools/nothing/readiness")
        runs = (await alice.get("/runs")).json()["items"]

    both = ["tickets:read", "tickets:write"]
    assert missing == (True, where, {"state": "missing", "lacking": both})
    assert narrow == (True, where, {"state": "too_narrow", "lacking": ["tickets:write"]})
    assert unclear == (True, where, {"state": "choice_needed", "lacking": both})
    assert ready == (False, None, {"state": "connected", "lacking": []})
    assert (unknown.status_code, runs, platform.list_requests("support")) == (404, [], [])


async def test_a_model_reads_the_same_readiness_and_which_link_to_show(platform: Platform) -> None:
    async with serve_api(platform, mcp=True) as api_server:
        ann = await api_server.add_person("alice", "Ann")
        token = await api_server.issue_token(ann, "/mcp")
        readiness, unfit, unknown = [
            read_answer(await call_tool(f"{api_server.url}/mcp", token, "byline_check", arguments))
            for arguments in ({"tool": "read_once"}, {}, {"tool": "nothing"})
        ]
        async with api_server.open_client(ann) as alice:
            over_rest = (await alice.get("/tools/read_once/readiness")).json()

    assert readiness["result"]["structuredContent"] == over_rest
    assert f"{api_server.url}/connect/tools/read_once" in readiness["result"]["content"][0]["text"]
    assert not readiness["result"].get("isError")
    assert unfit["result"]["_meta"][OUTCOME_META]["error"] == "arguments_invalid"
    assert unknown["error"]["code"] == -32602


async def _read_pages(client: httpx2.AsyncClient) -> AsyncIterator[list[dict[str, object]]]:
    after: str | None = ""
    while after is not None:
        query: dict[str, str | int] = {"limit": 1, **({"after": after} if after else {})}
        page = (await client.get("/connections", params=query)).json()
        after = page["next_cursor"]
        yield page["items"]
