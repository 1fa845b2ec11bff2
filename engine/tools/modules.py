"""Imports the modules that settings and entry points name, with all submodules. It does not inspect them."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType

from engine.errors import SettingsInvalid
from engine.wire import ENTRY_POINT_GROUP


def import_modules(module_names: tuple[str, ...]) -> Iterator[ModuleType]:
    """Yield each named module and, for a package, all its submodules; raises SettingsInvalid if a module is missing."""
    for module_name in (
        *module_names,
        *(entry_point.value for entry_point in entry_points(group=ENTRY_POINT_GROUP)),
    ):
        module = _import_module(module_name)
        yield module
        for submodule_info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module_name}."):
            yield _import_module(submodule_info.name)


def _import_module(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if module_name == error.name or module_name.startswith(f"{error.name}."):
            message = f"There is no module '{module_name}': install it where Byline runs, or correct BYLINE_MODULES."
        else:
            message = (
                f"Module '{module_name}' imports '{error.name}', which is not there: install that "
                "where Byline runs."
            )
        raise SettingsInvalid(message) from error
