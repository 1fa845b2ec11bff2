from pathlib import Path

import pytest

from engine.errors import NotAllowed, SettingsInvalid
from engine.identity.model import Principal
from engine.policy.policy import Policy, read_policy_file
from engine.services import Services
from tests.support.administration import give_role, set_active, take_role


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yml"
    path.write_text(
        "tools:\n  refund:\n    roles: [finance, lead]\n  close_books:\n    roles: []\n"
        "  pay:\n    scope: billing\n  charge:\n    roles: [lead]\n    scope: billing\n"
    )
    return path


async def test_a_role_is_given_once_and_taken_once(services: Services, alice: Principal) -> None:
    assert await give_role(services, alice.id, "finance")
    assert not await give_role(services, alice.id, "finance")
    assert await services.roles.list_roles(alice.id) == {"finance"}

    assert await take_role(services, alice.id, "finance")
    assert not await take_role(services, alice.id, "finance")
    assert await services.roles.list_roles(alice.id) == frozenset()


async def test_who_was_deactivated_is_asked_for_nothing_by_their_role(
    services: Services, alice: Principal, bob: Principal
) -> None:
    await give_role(services, alice.id, "finance")
    await give_role(services, bob.id, "finance")
    await set_active(services, bob.id, is_active=False)

    assert await services.roles.list_holders("finance") == [alice.id]


async def test_a_tool_that_the_policy_names_takes_one_of_its_roles(
    services: Services, alice: Principal, bob: Principal, rules: Path
) -> None:
    policy = Policy(lambda: read_policy_file(rules), services.roles)
    await give_role(services, alice.id, "lead")

    assert await policy.filter_allowed_tools(alice, ["greet", "refund", "close_books"]) == ["greet", "refund"]
    assert await policy.filter_allowed_tools(bob, ["greet", "refund"]) == ["greet"]
    with pytest.raises(NotAllowed, match="the policy asks for the role finance or lead"):
        await policy.require_permission(bob, "refund")


async def test_a_scope_is_no_role_and_takes_none(services: Services, bob: Principal, rules: Path) -> None:
    policy = Policy(lambda: read_policy_file(rules), services.roles)

    assert await policy.filter_allowed_tools(bob, ["pay", "charge"]) == ["pay"]
    assert policy.required_scopes == {"billing"}
    assert policy.list_tools_with_scope("billing") == ["charge", "pay"]
    assert [policy.find_required_scope(tool) for tool in ("pay", "refund", "greet")] == [
        "billing",
        None,
        None,
    ]


async def test_who_loses_the_role_loses_the_tool(
    services: Services, alice: Principal, other: Services, rules: Path
) -> None:
    await give_role(services, alice.id, "lead")
    await take_role(other, alice.id, "lead")

    assert (
        await Policy(lambda: read_policy_file(rules), services.roles).filter_allowed_tools(alice, ["refund"])
        == []
    )


async def test_without_a_policy_everybody_may_call_everything(services: Services, bob: Principal) -> None:
    assert await services.policy.filter_allowed_tools(bob, ["refund"]) == ["refund"]


@pytest.mark.parametrize(
    "text",
    [
        "tools: [refund]",
        "tools: {refund: {role: lead}}",
        "tools: {refund: {}}",
        "tools: {a: {scope: a b}}",
        "tools: {",
        "rules: {}",
    ],
)
def test_an_unreadable_policy_is_reported_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yml"
    path.write_text(text)

    with pytest.raises(SettingsInvalid, match=r"BYLINE_POLICY_FILE .*policy\.yml"):
        read_policy_file(path)
