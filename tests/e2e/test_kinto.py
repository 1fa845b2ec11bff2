import asyncio
from datetime import UTC, datetime

from examples.chat import Person, chat
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.e2e.world import TOOL, World, link, said
from tests.foreign.kinto import user

PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}


async def annotate(world: World, who: Person, record: str, note: str, account: str) -> dict[str, object]:
    async with chat(who, world.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": note}))
        page = await world.consent(who, await link(who), account)
        assert page.status == 200
        who.has_signed_in.set()
    return said(calling.result())


async def test_kinto_and_byline_agree_on_who_changed_a_record(world: World) -> None:
    alice, bob = (Person(name, PASSWORDS[name]) for name in ("alice", "bob"))
    record = world.record(writers=["alice"], readers=["bob"])

    changed = await annotate(world, alice, record, "pays on time", "alice")
    refused = await annotate(world, bob, record, "never pays", "bob")

    assert changed == {"record": record, "notes": ["pays on time"]}
    assert refused["error"] == "permission_denied"
    assert refused["message"] == "Kinto does not permit this to bob (Bob Baker)."

    (change,) = world.changes(record)
    by_alice, by_bob = await world.audit("--record", f"kinto:record/{record}", "--writes")
    assert change["target"]["data"]["notes"] == ["pays on time"]
    assert change["user_id"] == user(by_alice["account"])
    assert (by_alice["principal"]["name"], by_alice["verdict"], by_alice["status"]) == (
        "Alice Liddell",
        "allowed",
        200,
    )
    assert by_alice["resource"] == "/kinto" + change["uri"]
    changed_at = datetime.fromtimestamp(change["target"]["data"]["last_modified"] / 1000, UTC)
    assert changed_at <= datetime.fromisoformat(by_alice["time"])
    assert (by_bob["principal"]["name"], by_bob["account"], by_bob["verdict"], by_bob["status"]) == (
        "Bob Baker",
        "bob",
        "denied",
        403,
    )


async def test_auditors_read_the_same_in_words(world: World) -> None:
    who = await world.newcomer("carol")
    record = world.record()
    await annotate(world, who, record, "likes tea", "alice")

    told = await world.byline("audit", "--record", f"kinto:record/{record}", "--writes")
    proved = await world.byline("audit", "verify")

    assert "kinto.change_record PATCH" in told
    assert f"record     kinto:record/{record}" in told
    assert "connection kinto (user)" in told
    assert "account    alice" in told
    assert "verdict    allowed (200)" in told
    assert "annotate_record:" in told
    assert proved.startswith("The trail holds: ")
