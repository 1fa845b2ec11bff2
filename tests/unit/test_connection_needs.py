from temporalio import workflow

from engine.sdk import action, tool
from engine.tools.needs import ConnectionNeed, find_connection_needs
from engine.tools.registry import Registry


@action("needs_read", connection="crm", scopes=("read",))
async def read() -> None:
    raise AssertionError


@action("needs_write", connection="crm", scopes=("write",))
async def write() -> None:
    raise AssertionError


@action("needs_bill", connection="billing")
async def bill() -> None:
    raise AssertionError


@action("needs_unused", connection="unused")
async def unused_step() -> None:
    raise AssertionError


_STEPS = {"write": write}


async def _helper(step: str) -> None:
    await workflow.execute_activity(_STEPS[step])


@workflow.defn(name="needs_child")
class ChildWorkflow:
    @workflow.run
    async def run(self) -> None:
        await _helper("write")
        await workflow.execute_child_workflow(NeedyWorkflow.run)


@tool(title="Needy")
@workflow.defn(name="needs_needy")
class NeedyWorkflow:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(read)
        await workflow.execute_child_workflow("needs_child")
        [await workflow.execute_activity("needs_bill") for _ in range(2)]


def test_needs_are_found_through_helpers_tables_children_and_literal_names_though_they_go_in_circles() -> (
    None
):
    connection_needs = find_connection_needs(
        NeedyWorkflow, {"needs_child": ChildWorkflow}, {"needs_bill": bill}
    )

    assert connection_needs == (ConnectionNeed("billing", ()), ConnectionNeed("crm", ("read", "write")))


def test_declared_connections_are_needed_beside_those_that_are_found() -> None:
    found = find_connection_needs(
        NeedyWorkflow,
        {"needs_child": ChildWorkflow},
        {"needs_bill": bill},
        declared_names=("crm", "unused"),
    )

    assert found == (
        ConnectionNeed("billing", ()),
        ConnectionNeed("crm", ("read", "write")),
        ConnectionNeed("unused", ()),
    )


def test_the_billing_dispute_needs_its_three_systems() -> None:
    registry = Registry(("workflows", "activities"))
    needs = registry.needs["resolve_billing_dispute"]

    assert {need.connection_name for need in needs} == {"billing", "crm", "support"}
