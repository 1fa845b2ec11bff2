"""Holds identity to reaching every action by whatever way Temporal starts it, whole and with its chain."""

from datetime import timedelta

from temporalio.api.enums.v1 import EventType
from temporalio.common import RetryPolicy

from engine.identity.model import Identity
from engine.interceptors.client import carry_identity
from engine.interceptors.headers import read_header_text
from engine.runs.outcome import Finished
from engine.wire import IDENTITY_HEADER
from tests.fixtures.tools.account_reads import Reading
from tests.support.platform import CONTOSO, NORTHWIND, Platform

ACCOUNT = {"account_id": NORTHWIND}


async def read_outcome(platform: Platform, run_id: str) -> object:
    outcome = await platform.wait_for_outcome(run_id)
    assert isinstance(outcome, Finished), outcome
    return outcome.value


async def list_chains(platform: Platform, run_id: str) -> list[list[str]]:
    """The chain of every request of a run, all of them Alice's in name and account, shortest first."""
    ended_events = await platform.list_trail_events("action.ended", run_id)
    assert {event["principal"]["name"] for event in ended_events} == {"Alice Liddell"}
    assert {event["account"] for event in ended_events} == {platform.systems["crm"].find_account("alice")}
    return sorted((event["chain"] for event in ended_events), key=len)


async def test_fifty_levels_down_every_action_still_carries_the_name_and_the_whole_chain(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("read_at_every_level", {**ACCOUNT, "levels": 50}, platform.alice)
    await read_outcome(platform, run)

    identity_chains = await list_chains(platform, run)
    deepest = identity_chains[-1]
    assert [len(chain) for chain in identity_chains] == list(range(1, 52))
    assert all(chain == deepest[: len(chain)] for chain in identity_chains)
    assert deepest[0] == f"read_at_every_level:{run}"
    assert len(set(deepest)) == 51


async def test_two_hundred_children_at_once_all_act_in_the_same_name(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("read_widely", {**ACCOUNT, "width": 200}, platform.alice)
    await read_outcome(platform, run)

    identity_chains = await list_chains(platform, run)
    assert len({chain[1] for chain in identity_chains}) == len(identity_chains) == 200
    assert {chain[0] for chain in identity_chains} == {f"read_widely:{run}"}
    assert {request["account"] for request in platform.list_requests("crm")} == {
        platform.systems["crm"].find_account("alice")
    }


async def test_a_local_activity_acts_in_the_name_of_the_run_and_waits_like_any_other(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_locally", ACCOUNT, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.consent(request, platform.alice)

    await read_outcome(platform, run)

    assert await list_chains(platform, run) == [[f"read_locally:{run}"]]


async def test_a_run_that_continues_as_new_keeps_its_name_also_for_its_children(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run(
        "read_at_every_level", {**ACCOUNT, "continued": 2, "levels": 1}, platform.alice
    )
    await read_outcome(platform, run)

    root, child = await list_chains(platform, run)
    assert root == [f"read_at_every_level:{run}"]
    assert child[:1] == root
    assert len(child) == 2


async def test_a_worker_that_never_saw_the_workflow_asks_the_server_whose_action_it_is(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    queue = f"{platform.settings.temporal.task_queue}-elsewhere"
    journey = {**ACCOUNT, "levels": 1, "task_queue": queue}

    async with platform.run_worker_process(queue):
        once = await platform.start_run("read_at_every_level", journey, platform.alice)
        again = await platform.start_run("read_at_every_level", {**journey, "continued": 1}, platform.alice)
        await read_outcome(platform, once)
        await read_outcome(platform, again)

    for run in (once, again):
        assert [len(chain) for chain in await list_chains(platform, run)] == [1, 2]


async def test_a_signal_shows_its_sender_and_passes_on_no_identity(platform: Platform) -> None:
    await platform.give_grant("crm", platform.bob)
    bobs = await platform.start_run("read_when_told", {"account_id": CONTOSO}, platform.bob)

    alices = await platform.start_run("send_word", {"to": bobs}, platform.alice)
    await read_outcome(platform, alices)
    await read_outcome(platform, bobs)

    (signal,) = [
        event.workflow_execution_signaled_event_attributes
        for event in await platform.fetch_history(bobs)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
    sender = Identity.parse_unverified(read_header_text(signal.header.fields, IDENTITY_HEADER) or "")
    (ended_event,) = await platform.list_trail_events("action.ended", bobs)
    (request,) = platform.list_requests("crm")
    assert sender is not None
    assert (sender.name, sender.run_id) == ("Alice Liddell", alices)
    assert ended_event["principal"]["name"] == "Bob Baker"
    assert request["account"] == platform.systems["crm"].find_account("bob")


async def test_a_child_that_temporal_starts_again_keeps_the_name(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("start_second_attempt", ACCOUNT, platform.alice)
    await read_outcome(platform, run)

    assert [len(chain) for chain in await list_chains(platform, run)] == [2]


async def test_a_root_that_temporal_starts_again_keeps_the_name(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)
    run = "retried-root"
    identity = platform.build_identity(platform.alice, run, "read_at_second_attempt")
    await platform.register(identity)

    with carry_identity(await platform.sign_identity(identity)):
        await platform.temporal.start_workflow(
            identity.tool_name,
            Reading(account_id=NORTHWIND),
            id=run,
            task_queue=platform.settings.temporal.task_queue,
            retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10)),
        )
    await read_outcome(platform, run)

    assert await list_chains(platform, run) == [[f"read_at_second_attempt:{run}"]]
