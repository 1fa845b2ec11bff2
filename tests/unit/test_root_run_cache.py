import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.interceptors import root_run_cache
from engine.interceptors.root_run_cache import RootRunCache
from engine.runs.records import RootRun


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_seconds)


@pytest.mark.usefixtures("hasty_threads")
def test_workflow_threads_record_their_root_runs_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_run_cache, "_MAX_CACHED_RUNS", 10)
    root_runs = RootRunCache()

    def record_many(thread: int) -> None:
        for number in range(2_000):
            root_runs.record_root(f"{thread}-{number}", RootRun("run", "first"))

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(record_many, range(4)):
            pass
