import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOP_PACKAGES = ("byline", "engine", "activities", "workflows", "gateway")


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def ran(
    command: str, *arguments: str, at: Path = ROOT, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / command
    return subprocess.run(
        [program, *arguments], check=False, cwd=at, input=text, capture_output=True, text=True
    )


def test_every_module_has_a_docstring() -> None:
    assert not [
        path
        for path in modules(*TOP_PACKAGES, "examples")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]


def test_a_package_file_holds_a_docstring_at_most() -> None:
    packages = [path for path in modules(*TOP_PACKAGES) if path.name == "__init__.py"]
    packages.remove(ROOT / "byline" / "__init__.py")  # it is what builders import

    assert not [path for path in packages if len(ast.parse(path.read_text()).body) > 1]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_everything_by_hash_and_names_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    pinned = re.findall(r"^[a-z0-9][^\n]*", text, flags=re.MULTILINE)

    assert pinned
    assert "://" not in text
    assert all(re.match(r"[a-z0-9-]+==\S+ (; .+ )?\\$", line) for line in pinned)
    assert len(re.findall(r"\\\n    --hash=sha256:[0-9a-f]{64}(?= |\n)", text)) >= len(pinned)


def test_what_runs_is_what_was_tested() -> None:
    pins = [
        set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    ]

    assert pins[0] <= pins[1]


def test_the_lock_of_the_node_packages_names_no_address() -> None:
    lock: dict[str, Any] = json.loads((ROOT / "tests/node/package-lock.json").read_text())

    assert all("integrity" in package for path, package in lock["packages"].items() if path)
    assert "resolved" not in json.dumps(lock)


def test_the_wheel_contains_the_top_packages_the_migrations_and_the_command(tmp_path: Path) -> None:
    built = ran("hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    command = next(name for name in names if name.endswith("entry_points.txt"))

    # Builders call packages of their own `workflows` and `activities`, and installers merge two of one name.
    assert tops == {"byline", "engine", "gateway"}
    assert {
        "gateway/dev/demo/activities/zendesk.py",
        "gateway/dev/demo/sandbox/connections.yml",
        "gateway/dev/demo/stack/temporal-dev.yml",
        "gateway/dev/demo/workflows/billing_dispute.py",
    } <= set(names)
    assert "engine/migrations/env.py" in names
    assert "engine/connections/providers/salesforce.yml" in names
    assert {"gateway/browser/templates/layout.html", "gateway/browser/static/byline.css"} <= set(names)
    assert "byline = gateway.cli:main" in zipfile.ZipFile(wheel).read(command).decode()


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "import random",
        "import os",
        "from os import environ",
        "import secrets",
        "import httpx2",
        "from uuid import uuid4",
        "import uuid\n\nuuid.uuid4()",
        "import datetime\n\ndatetime.datetime.now(datetime.UTC)",
        "from datetime import datetime\n\ndatetime.now()",
    ],
)
def test_a_workflow_that_reads_clock_chance_or_machine_is_refused(line: str) -> None:
    checked = ran(
        "ruff", "check", "--no-cache", "--stdin-filename", "workflows/sample.py", "-", text=line + "\n"
    )

    assert "TID251" in checked.stdout


def test_the_release_has_one_number() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("engine/planted.py", "", "Inside the engine, every package has its layer"),
        (
            "engine/wire.py",
            "import engine.errors, engine.services",
            "Inside the engine, every package has its layer",
        ),
        ("engine/wire.py", "import gateway.cli", "The top packages"),
        ("activities/planted.py", "import gateway.cli", "The top packages"),
        ("activities/planted.py", "import workflows", "The top packages"),
        ("gateway/planted.py", "", "Inside the gateway, every module has its layer"),
        (
            "gateway/api/planted.py",
            "import gateway.pages.authorization_requests",
            "Inside the gateway, every module has its layer",
        ),
        *(
            (
                f"engine/{package}/planted.py",
                f"import engine.{above}",
                "Inside the engine, every package has its layer",
            )
            for package, above in (
                ("oauth", "sign_in.methods"),
                ("grants", "sign_in.methods"),
                ("sign_in", "tools.readiness"),
                ("actions", "tools.registry"),
                ("tools", "services"),
                ("policy", "actions.upstream"),
                ("administration", "upkeep.upkeep"),
                ("schedules", "administration.people"),
            )
        ),
        (
            "engine/runs/records.py",
            "import engine.runs.runs",
            "Inside the engine, every package has its layer",
        ),
        (
            "gateway/mcp/exchange/planted.py",
            "import gateway.mcp.methods.tool_calls",
            "Inside the MCP package",
        ),
        ("gateway/mcp/methods/planted.py", "import gateway.mcp.transport.asgi", "Inside the MCP package"),
        ("gateway/mcp/transport/planted.py", "import gateway.mcp.methods.tasks", "Inside the MCP package"),
        ("gateway/mcp/endpoints.py", "import gateway.mcp.methods.search", "Inside the MCP package"),
        (
            "gateway/mcp/transport/planted.py",
            "import gateway.api.problems",
            "Inside the gateway, every module has its layer",
        ),
        (
            "gateway/pages/planted.py",
            "import engine.services",
            "A page or route is passed the services that it uses",
        ),
        ("gateway/planted.py", "import activities", "No request reaches an upstream"),
        ("gateway/planted.py", "import workflows", "No request reaches an upstream"),
        ("workflows/planted.py", "import engine.settings", "Tools and actions import `byline` alone"),
        ("activities/planted.py", "import engine.sdk", "Tools and actions import `byline` alone"),
        ("activities/planted.py", "import byline.testing", "Tools and actions import `byline` alone"),
        ("byline/http.py", "import httpx2", "Nothing that a workflow imports"),
        ("byline/mcp.py", "import activities", "The top packages"),
        ("gateway/planted.py", "import byline", "No request reaches an upstream"),
        ("workflows/planted.py", "import sqlite3", "Nothing that a workflow imports"),
        ("engine/tools/offers.py", "import httpx2", "Nothing that a workflow imports"),
        ("engine/tools/registry.py", "import fastapi", "The engine serves no HTTP"),
        (
            "gateway/client/planted.py",
            "import engine.services",
            "The command line calls a gateway only by its API",
        ),
        (
            "gateway/commands/admin/keys.py",
            "import gateway.protected_resource",
            "Only commands that serve MCP or HTTP",
        ),
        ("examples/sandbox/planted.py", "import engine.errors", "The sandbox imports nothing of the product"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    module: str, line: str, contract: str, tmp_path: Path
) -> None:
    for package in (*TOP_PACKAGES, "examples"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    checked = ran("lint-imports", "--no-cache", at=tmp_path)

    assert checked.returncode == 1
    assert re.search(re.escape(contract) + "[^A-Z]* BROKEN", " ".join(checked.stdout.split())), checked.stdout


def _imported_modules(path: Path, known: frozenset[str]) -> set[str]:
    """The modules of ours that a module imports, for the type checker alone too."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return imported & known


def test_no_modules_import_each_other_in_a_cycle_not_even_for_the_type_checker() -> None:
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules(*TOP_PACKAGES)}
    imports = {module: _imported_modules(path, frozenset(paths)) for module, path in paths.items()}

    list(TopologicalSorter(imports).static_order())
