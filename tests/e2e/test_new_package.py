"""Holds `byline new` to its promise: what it makes installs, is listed, is well-formed, and passes its own test."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.installation import ROOT, install_package, run_command

NAME, MODULE = "late-shift", "late_shift"


@dataclass(frozen=True)
class Builder:
    """Somebody who has Byline's wheel and nothing of its repository."""

    folder: Path
    package: Path
    environment: dict[str, str]

    async def run_command(self, *command: str, working_folder: Path | None = None) -> str:
        return await run_command((sys.executable, *command), self.environment, working_folder or self.folder)


@pytest.fixture
async def builder(tmp_path: Path, wheel: Path) -> Builder:
    site, folder = tmp_path / "site", tmp_path / "home"
    folder.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")},
        "PYTHONPATH": await install_package(wheel, site),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    new_output = await run_command((sys.executable, "-m", "gateway.cli", "new", NAME), environment, folder)
    assert f"Made {NAME}." in new_output
    await install_package(folder / NAME, site)
    return Builder(folder, folder / NAME, environment)


async def test_what_is_made_passes_its_own_test_and_its_tool_is_listed(builder: Builder) -> None:
    output = await builder.run_command(
        "-m", "pytest", "-p", "no:cacheprovider", working_folder=builder.package
    )
    listing = await builder.run_command("-c", _print_registry("tool.name, tool.declaration.title"))
    schema = await builder.run_command("-c", _print_registry("sorted(tool.input_schema['properties'])"))
    places = await builder.run_command(
        "-c", f"import {MODULE}, gateway; print({MODULE}.__file__, gateway.__file__)"
    )

    assert "1 passed" in output
    assert listing == "late_shift_add_note Add a note to a ticket\n"
    assert schema == "['text', 'ticket_id']\n"
    assert str(ROOT) not in places


async def test_what_is_made_is_well_formed_by_the_defaults_of_others(builder: Builder) -> None:
    checks: Sequence[tuple[str, ...]] = (
        ("ruff", "check", "--no-cache", "--isolated", "."),
        ("ruff", "format", "--check", "--no-cache", "--isolated", "."),
        ("mypy", "--strict", "--cache-dir", str(builder.folder / "cache"), MODULE, "tests"),
    )
    for check in checks:
        await builder.run_command("-m", *check, working_folder=builder.package)
    assert (Path(builder.environment["PYTHONPATH"]) / "engine" / "py.typed").is_file()


def _print_registry(what: str) -> str:
    return (
        f"from engine.tools.registry import Registry; "
        f"tool = Registry(()).tools['{MODULE}_add_note']; print(*({what},))"
    )
