"""The running Byline that the end-to-end tests share; each test brings its own people and records."""

import inspect
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.installation import Installation, run_command, run_installation


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byline as it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    await run_command(build, {**os.environ})
    (built,) = folder.glob("byline-*.whl")
    return built


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with run_installation(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run every test of this folder on the loop that the shared processes belong to."""
    for item in items:
        is_async = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)
        if is_async and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
