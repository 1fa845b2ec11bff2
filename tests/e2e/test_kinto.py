import asyncio
from datetime import UTC, datetime

from examples.chat import Person, open_chat
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.e2e.installation import TOOL, Installation, next_link, read_result
from tests.support.foreign.kinto import build_user_id

PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}


async def annotate(
    installation: Installation, who: Person, record: str, note: str, account: str
) -> dict[str, object]:
    async with open_chat(who, installation.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": note}))
        page = await installation.consent(who, await next_link(who), account)
        assert page.status == 200
        who.has_signed_in.set()
    return read_result(calling.result())


async def test_kinto_and_byline_agree_on_who_changed_a_record(installation: Installation) -> None:
    alice, bob = (Person(name, PASSWORDS[name]) for name in ("alice", "bob"))
    record = installation.add_record(writers=["alice"], readers=["bob"])

    change_result = await annotate(installation, alice, record, "pays on time", "alice")
    refusal = await annotate(installation, bob, record, "never pays", "bob")

    assert change_result == {"record": record, "notes": ["pays on time"]}
    assert refusal["error"] == "permission_denied"
    assert refusal["message"] == "Kinto does not permit this to bob (Bob Baker)."

    (change,) = installation.list_changes(record)
    by_alice, by_bob = await installation.read_audit_lines("--record", f"kinto:record/{record}", "--writes")
    assert change["target"]["data"]["notes"] == ["pays on time"]
    assert change["user_id"] == build_user_id(by_alice["account"])
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


async def test_auditors_read_the_same_in_words(installation: Installation) -> None:
    who = await installation.add_newcomer("carol")
    record = installation.add_record()
    await annotate(installation, who, record, "likes tea", "alice")

    output = await installation.run_byline("audit", "--record", f"kinto:record/{record}", "--writes")
    proof_output = await installation.run_byline("audit", "verify")

    assert "kinto.change_record PATCH" in output
    assert f"record     kinto:record/{record}" in output
    assert "connection kinto (user)" in output
    assert "account    alice" in output
    assert "verdict    allowed (200)" in output
    assert "annotate_record:" in output
    assert proof_output.startswith("The trail holds: ")
