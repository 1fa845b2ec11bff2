"""One Temporal server and three sandbox systems for all tests that ask for them; each has its own platform."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.platform import Platform, open_platform, temporal_server
from tests.support.sandbox_systems import SYSTEMS, SandboxProcess, run_sandbox_system


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal_address() -> AsyncIterator[str]:
    async with temporal_server() as address:
        yield address


@pytest.fixture(scope="session")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, SandboxProcess]]:
    folder = tmp_path_factory.mktemp("upstreams")
    with ExitStack() as stack:
        yield {name: stack.enter_context(run_sandbox_system(name, folder / f"{name}.db")) for name in SYSTEMS}


@pytest.fixture
async def idle_platform(
    tmp_path: Path, temporal_address: str, upstreams: Mapping[str, SandboxProcess]
) -> AsyncIterator[Platform]:
    """A platform that nobody works for yet."""
    async with open_platform(tmp_path, temporal_address, upstreams) as platform:
        yield platform


@pytest.fixture
async def platform(idle_platform: Platform) -> AsyncIterator[Platform]:
    """A platform with a worker and with the delivery of wake-ups."""
    async with idle_platform.run_worker(), idle_platform.run_wake_up_delivery():
        yield idle_platform
