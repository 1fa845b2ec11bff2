"""`byline new`: makes a package for a builder from the one in gateway/starter. It overwrites nothing."""

import importlib.util
import keyword
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import SettingsInvalid

_STARTER = Path(__file__).parent.parent / "starter" / "my-tools"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# The tool's name begins with the package's, and a tool's name has 64 characters at most.
_LONGEST = 40
_TAKEN = frozenset({"byline", "tests"})


def new(
    name: Annotated[str, typer.Argument(help="the package's name: lower-case words joined by hyphens")],
    directory: Annotated[Path, typer.Option(help="The folder to make it in.")] = Path(),
) -> None:
    """Make a package with a tool, its test and its README."""
    made, python = make_package(name, directory), shlex.quote(sys.executable)
    typer.echo(
        f"""Made {made}. Next, install it beside Byline and test it:

  {python} -m pip install --no-build-isolation --editable {shlex.quote(f"{made}[test]")}
  {python} -m pytest {shlex.quote(str(made))}

{made / "README.md"} says how to run it."""
    )


def make_package(name: str, directory: Path) -> Path:
    """Make the package in a new folder of `parent_folder` and return that folder.

    Raises SettingsInvalid if the name cannot be used, or if the folder exists or cannot be written.
    """
    module = _module(name)
    folder = directory / name
    if folder.exists():
        raise SettingsInvalid(
            f"{folder} is there already: choose another name, or another place with --directory."
        )
    try:
        for source in sorted(path for path in _STARTER.rglob("*") if _belongs(path)):
            target = folder / str(source.relative_to(_STARTER)).replace("my_tools", module)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8").replace("my-tools", name).replace("my_tools", module)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsInvalid(
            f"Cannot write {error.filename} ({error.strerror}): choose another place with --directory."
        ) from error
    return folder


def _belongs(path: Path) -> bool:
    """Whether a file is part of the starter. Files that interpreters and checkers leave beside it are not."""
    hidden = any(part.startswith(("__pycache__", ".")) for part in path.relative_to(_STARTER).parts)
    return path.is_file() and not hidden


def _module(name: str) -> str:
    """Return the import name of a package. Raises SettingsInvalid if it could not be installed or imported."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise SettingsInvalid(
            f"'{name}' is no name for a package: write lower-case words joined by hyphens, such as my-tools, "
            f"with {_LONGEST} characters at most."
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in _TAKEN or importlib.util.find_spec(module) is not None:
        raise SettingsInvalid(
            f"'{module}' means something else here already: choose another name, such as {name}-tools."
        )
    return module
