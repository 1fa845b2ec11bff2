import re
from pathlib import Path

import pytest

from engine.connections.connection import Connection
from engine.errors import ConnectionMisconfigured
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.method import SignInAnswer, SignInResult
from engine.sign_in.methods import SIGN_IN_METHODS, find_method_class

ROOT = Path(__file__).parents[2]
THE_ROOM = ROOT / "engine/sign_in"


def documented() -> dict[str, set[str]]:
    """The ways that the reference names, and in which modes."""
    page = (ROOT / "docs/reference/connections.md").read_text()
    section = page[page.index("## Ways to sign in") : page.index("## Key")]
    modes = {"`user`": {"user"}, "`shared`": {"shared"}, "both": {"user", "shared"}}
    return {
        name: modes[mode]
        for names, mode in re.findall(r"^\| (`[a-z_`, ]+) \| (`\w+`|both) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }


def test_the_reference_names_every_way_that_a_connection_may_declare_and_its_modes() -> None:
    declarable = {name: set(way.modes) for name, way in SIGN_IN_METHODS.items() if way.modes}

    assert documented() == declarable


def test_a_way_that_no_connection_declares_is_an_alternative_of_one_that_it_may() -> None:
    alternatives = {name for way in SIGN_IN_METHODS.values() for name in way.alternatives}

    assert alternatives == {name for name, way in SIGN_IN_METHODS.items() if not way.modes}
    assert all(SIGN_IN_METHODS[name].step_kind is not None for name in alternatives)


def test_nobody_else_asks_by_which_way_a_connection_signs_in() -> None:
    asks = re.compile(r"connection\.sign_in\b")
    sources = [
        path
        for room in ("engine", "gateway", "activities", "workflows")
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".py", ".html"} and THE_ROOM not in path.parents
    ]

    assert sources
    assert not [path for path in sources if asks.search(path.read_text())]


def test_a_way_that_a_later_release_declared_is_told_and_no_other_is_used() -> None:
    later = Connection(
        name="crm",
        title="Acme CRM",
        system="crm",
        mode="user",
        base_url="https://crm.example.com",  # type: ignore[arg-type]
        sign_in="of_tomorrow",
    )

    with pytest.raises(ConnectionMisconfigured, match="'crm' has no sign_in of_tomorrow"):
        find_method_class(later)


def test_what_a_sign_in_brings_shows_no_secret_when_it_is_printed() -> None:
    tokens = UpstreamTokens("planted-access", "planted-refresh", None, ("read",), proof_key="planted-proof")
    answer = SignInAnswer("request", ("read",), {"secret": "planted-key"}, attempt_secret="planted-verifier")

    assert "planted" not in f"{tokens!r} {answer!r} {SignInResult(tokens, 'alice', '')!r}"
