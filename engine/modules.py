"""Imports the modules that settings and entry points name, with all submodules. It does not inspect them."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType

from engine.errors import SettingsInvalid
from engine.wire import ENTRY_POINT_GROUP


def imported(names: tuple[str, ...]) -> Iterator[ModuleType]:
    """Yield each named module and, for a package, all its submodules; raises SettingsInvalid if a module is missing."""
    for name in (*names, *(point.value for point in entry_points(group=ENTRY_POINT_GROUP))):
        module = _imported(name)
        yield module
        for within in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            yield _imported(within.name)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name == error.name or name.startswith(f"{error.name}."):
            msg = f"There is no module '{name}': install it where Byline runs, or correct BYLINE_MODULES."
        else:
            msg = (
                f"Module '{name}' imports '{error.name}', which is not there: install that where Byline runs."
            )
        raise SettingsInvalid(msg) from error
