"""`byline new`: makes a package for a builder from the one in gateway/dev/starter. It overwrites nothing."""

import importlib.util
import keyword
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import SettingsInvalid

_STARTER_FOLDER = Path(__file__).parent / "starter" / "my-tools"
_NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# The tool's name begins with the package's, and a tool's name has 64 characters at most.
_MAX_NAME_CHARS = 40
_RESERVED_NAMES = frozenset({"byline", "tests"})


def new(
    name: Annotated[str, typer.Argument(help="the package's name: lower-case words joined by hyphens")],
    directory: Annotated[Path, typer.Option(help="the folder in which the package is created")] = Path(),
) -> None:
    """Create a package with a tool, its test and its README."""
    package_folder, python_path = make_package(name, directory), shlex.quote(sys.executable)
    typer.echo(
        f"""Made {package_folder}. Next, install it beside Byline and test it:

  {python_path} -m pip install --no-build-isolation --editable {shlex.quote(f"{package_folder}[test]")}
  {python_path} -m pytest {shlex.quote(str(package_folder))}

{package_folder / "README.md"} says how to run it."""
    )


def make_package(package_name: str, parent_folder: Path) -> Path:
    """Make the package in a new folder of `parent_folder` and return that folder.

    Raises SettingsInvalid if the name cannot be used, or if the folder exists or cannot be written.
    """
    module_name = _to_module_name(package_name)
    package_folder = parent_folder / package_name
    if package_folder.exists():
        raise SettingsInvalid(
            f"{package_folder} is there already: choose another name, or another place with --directory."
        )
    try:
        for source_path in sorted(
            starter_path for starter_path in _STARTER_FOLDER.rglob("*") if _is_starter_file(starter_path)
        ):
            target_path = package_folder / str(source_path.relative_to(_STARTER_FOLDER)).replace(
                "my_tools", module_name
            )
            target_path.parent.mkdir(parents=True, exist_ok=True)
            file_text = (
                source_path.read_text(encoding="utf-8")
                .replace("my-tools", package_name)
                .replace("my_tools", module_name)
            )
            target_path.write_text(file_text, encoding="utf-8")
    except OSError as error:
        raise SettingsInvalid(
            f"Cannot write {error.filename} ({error.strerror}): choose another place with --directory."
        ) from error
    return package_folder


def _is_starter_file(file_path: Path) -> bool:
    """Whether a file is part of the starter. Files that interpreters and checkers leave beside it are not."""
    is_hidden = any(
        path_part.startswith(("__pycache__", "."))
        for path_part in file_path.relative_to(_STARTER_FOLDER).parts
    )
    return file_path.is_file() and not is_hidden


def _to_module_name(package_name: str) -> str:
    """Return the import name of a package. Raises SettingsInvalid if it could not be installed or imported."""
    if not _NAME_PATTERN.fullmatch(package_name) or len(package_name) > _MAX_NAME_CHARS:
        raise SettingsInvalid(
            f"'{package_name}' is no name for a package: write lower-case words joined by hyphens, such as my-tools, "
            f"with {_MAX_NAME_CHARS} characters at most."
        )
    module_name = package_name.replace("-", "_")
    if (
        keyword.iskeyword(module_name)
        or module_name in _RESERVED_NAMES
        or importlib.util.find_spec(module_name) is not None
    ):
        raise SettingsInvalid(
            f"'{module_name}' means something else here already: choose another name, such as {package_name}-tools."
        )
    return module_name
