"""Holds identity to reaching every action by whatever way Temporal starts it, whole and with its chain."""

from datetime import timedelta

from temporalio.api.enums.v1 import EventType
from temporalio.common import RetryPolicy

from engine.identity.model import Identity
from engine.interceptors.client import carry_identity
from engine.interceptors.headers import read_header_text
from engine.runs.outcome import Finished
from engine.wire import IDENTITY_HEADER
from tests.platform import CONTOSO, NORTHWIND, Platform
from tests.tools.reading import Reading

ACCOUNT = {"account_id": NORTHWIND}


async def finished(platform: Platform, run_id: str) -> object:
    outcome = await platform.outcome(run_id)
    assert isinstance(outcome, Finished), outcome
    return outcome.value


async def chains(platform: Platform, run_id: str) -> list[list[str]]:
    """The chain of every request of a run, all of them Alice's in name and account, shortest first."""
    ended = await platform.trail("action.ended", run_id)
    assert {event["principal"]["name"] for event in ended} == {"Alice Liddell"}
    assert {event["account"] for event in ended} == {platform.systems["crm"].account("alice")}
    return sorted((event["chain"] for event in ended), key=len)


async def test_fifty_levels_down_every_action_still_carries_the_name_and_the_whole_chain(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)

    run = await platform.start("read_at_every_level", {**ACCOUNT, "levels": 50}, platform.alice)
    await finished(platform, run)

    found = await chains(platform, run)
    deepest = found[-1]
    assert [len(chain) for chain in found] == list(range(1, 52))
    assert all(chain == deepest[: len(chain)] for chain in found)
    assert deepest[0] == f"read_at_every_level:{run}"
    assert len(set(deepest)) == 51


async def test_two_hundred_children_at_once_all_act_in_the_same_name(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)

    run = await platform.start("read_widely", {**ACCOUNT, "width": 200}, platform.alice)
    await finished(platform, run)

    found = await chains(platform, run)
    assert len({chain[1] for chain in found}) == len(found) == 200
    assert {chain[0] for chain in found} == {f"read_widely:{run}"}
    assert {request["account"] for request in platform.requests("crm")} == {
        platform.systems["crm"].account("alice")
    }


async def test_a_local_activity_acts_in_the_name_of_the_run_and_waits_like_any_other(
    platform: Platform,
) -> None:
    run = await platform.start("read_locally", ACCOUNT, platform.alice)
    (request,) = await platform.parked(run)
    await platform.consent(request, platform.alice)

    await finished(platform, run)

    assert await chains(platform, run) == [[f"read_locally:{run}"]]


async def test_a_run_that_continues_as_new_keeps_its_name_also_for_its_children(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)

    run = await platform.start(
        "read_at_every_level", {**ACCOUNT, "continued": 2, "levels": 1}, platform.alice
    )
    await finished(platform, run)

    root, child = await chains(platform, run)
    assert root == [f"read_at_every_level:{run}"]
    assert child[:1] == root
    assert len(child) == 2


async def test_a_worker_that_never_saw_the_workflow_asks_the_server_whose_action_it_is(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)
    queue = f"{platform.settings.temporal.task_queue}-elsewhere"
    journey = {**ACCOUNT, "levels": 1, "task_queue": queue}

    async with platform.worker_process(queue):
        once = await platform.start("read_at_every_level", journey, platform.alice)
        again = await platform.start("read_at_every_level", {**journey, "continued": 1}, platform.alice)
        await finished(platform, once)
        await finished(platform, again)

    for run in (once, again):
        assert [len(chain) for chain in await chains(platform, run)] == [1, 2]


async def test_a_signal_shows_its_sender_and_lends_nobody_its_name(platform: Platform) -> None:
    await platform.grant("crm", platform.bob)
    bobs = await platform.start("read_when_told", {"account_id": CONTOSO}, platform.bob)

    alices = await platform.start("send_word", {"to": bobs}, platform.alice)
    await finished(platform, alices)
    await finished(platform, bobs)

    (signal,) = [
        event.workflow_execution_signaled_event_attributes
        for event in await platform.history(bobs)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
    sender = Identity.parse_unverified(read_header_text(signal.header.fields, IDENTITY_HEADER) or "")
    (ended,) = await platform.trail("action.ended", bobs)
    (request,) = platform.requests("crm")
    assert sender is not None
    assert (sender.name, sender.run_id) == ("Alice Liddell", alices)
    assert ended["principal"]["name"] == "Bob Baker"
    assert request["account"] == platform.systems["crm"].account("bob")


async def test_a_child_that_temporal_starts_again_keeps_the_name(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)

    run = await platform.start("start_second_attempt", ACCOUNT, platform.alice)
    await finished(platform, run)

    assert [len(chain) for chain in await chains(platform, run)] == [2]


async def test_a_root_that_temporal_starts_again_keeps_the_name(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)
    run = "retried-root"
    identity = platform.identity(platform.alice, run, "read_at_second_attempt")
    await platform.register(identity)

    with carry_identity(await platform.signed(identity)):
        await platform.temporal.start_workflow(
            identity.tool_name,
            Reading(account_id=NORTHWIND),
            id=run,
            task_queue=platform.settings.temporal.task_queue,
            retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10)),
        )
    await finished(platform, run)

    assert await chains(platform, run) == [[f"read_at_second_attempt:{run}"]]
