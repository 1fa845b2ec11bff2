"""The three sandbox systems, running side by side for the tests of one file."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.sandbox_systems import SYSTEMS, SandboxProcess, run_sandbox_system


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SandboxProcess]]:
    """Start all three, side by side."""
    folder = tmp_path_factory.mktemp("sandbox")
    with (
        run_sandbox_system("crm", folder / "crm.db") as crm_system,
        run_sandbox_system("billing", folder / "billing.db") as billing_system,
        run_sandbox_system("support", folder / "support.db") as support_system,
    ):
        yield {"crm": crm_system, "billing": billing_system, "support": support_system}


@pytest.fixture(params=list(SYSTEMS))
def any_system(request: pytest.FixtureRequest, systems: dict[str, SandboxProcess]) -> SandboxProcess:
    """Give each of the three in turn."""
    return systems[request.param]


@pytest.fixture
def the_crm(systems: dict[str, SandboxProcess]) -> SandboxProcess:
    return systems["crm"]


@pytest.fixture
def the_billing(systems: dict[str, SandboxProcess]) -> SandboxProcess:
    return systems["billing"]


@pytest.fixture
def the_support(systems: dict[str, SandboxProcess], monkeypatch: pytest.MonkeyPatch) -> SandboxProcess:
    # Zenpy's own switch for servers elsewhere than at Zendesk.
    monkeypatch.setenv("ZENPY_FORCE_SCHEME", "http")
    monkeypatch.setenv("ZENPY_FORCE_NETLOC", urlsplit(systems["support"].url).netloc)
    return systems["support"]
