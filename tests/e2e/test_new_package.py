"""Holds `byline new` to its promise: what it makes installs, is listed, is well-formed, and passes its own test."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.world import ROOT, installed, output

NAME, MODULE = "late-shift", "late_shift"


@dataclass(frozen=True)
class Builder:
    """Somebody who has Byline's wheel and nothing of its repository."""

    folder: Path
    package: Path
    environment: dict[str, str]

    async def runs(self, *command: str, at: Path | None = None) -> str:
        return await output((sys.executable, *command), self.environment, at or self.folder)


@pytest.fixture
async def builder(tmp_path: Path, wheel: Path) -> Builder:
    site, folder = tmp_path / "site", tmp_path / "home"
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")},
        "PYTHONPATH": await installed(wheel, site),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    told = await output((sys.executable, "-m", "gateway.cli", "new", NAME), environment, folder)
    assert f"Made {NAME}." in told
    await installed(folder / NAME, site)
    return Builder(folder, folder / NAME, environment)


async def test_what_is_made_passes_its_own_test_and_its_tool_is_listed(builder: Builder) -> None:
    passed = await builder.runs("-m", "pytest", "-p", "no:cacheprovider", at=builder.package)
    listed = await builder.runs("-c", _told_by_the_registry("tool.name, tool.declaration.title"))
    schema = await builder.runs("-c", _told_by_the_registry("sorted(tool.input_schema['properties'])"))
    places = await builder.runs("-c", f"import {MODULE}, gateway; print({MODULE}.__file__, gateway.__file__)")

    assert "1 passed" in passed
    assert listed == "late_shift_add_note Add a note to a ticket\n"
    assert schema == "['text', 'ticket_id']\n"
    assert str(ROOT) not in places


async def test_what_is_made_is_well_formed_by_the_defaults_of_others(builder: Builder) -> None:
    checks: Sequence[tuple[str, ...]] = (
        ("ruff", "check", "--no-cache", "--isolated", "."),
        ("ruff", "format", "--check", "--no-cache", "--isolated", "."),
        ("mypy", "--strict", "--cache-dir", str(builder.folder / "cache"), MODULE, "tests"),
    )
    for check in checks:
        await builder.runs("-m", *check, at=builder.package)
    assert (Path(builder.environment["PYTHONPATH"]) / "engine" / "py.typed").is_file()


def _told_by_the_registry(what: str) -> str:
    return (
        f"from engine.tools.registry import Registry; "
        f"tool = Registry(()).tools['{MODULE}_add_note']; print(*({what},))"
    )
