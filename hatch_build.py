"""Puts the development stack and its demo into the wheel, under a name that no package of a builder has.

`workflows` and `activities` are what builders call their own packages as well, and installers merge two packages of one
name silently. So the wheel holds the demo's below `gateway/dev/demo`, and imports of them are written accordingly.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_DEMO_FOLDER: Final = "gateway/dev/demo"
_DEMO_PACKAGE: Final = _DEMO_FOLDER.replace("/", ".")
_SOURCE_FOLDERS: Final = ("workflows", "activities", "examples/sandbox")
_COMPOSE_FILE: Final = "temporal-dev.yml"
_IMPORT_PATTERN: Final = re.compile(
    r"^(\s*(?:from|import) )(?:examples\.)?(workflows|activities|sandbox)\b", re.MULTILINE
)
# Processes of the stack start in the folder of the Compose file, from which Python then imports: it holds nothing else.
_COMPOSE_REPLACEMENTS: Final = {
    '["workflows", "activities"]': f'["{_DEMO_PACKAGE}.workflows", "{_DEMO_PACKAGE}.activities"]',
    "examples/sandbox/": "../sandbox/",
    "examples.sandbox": f"{_DEMO_PACKAGE}.sandbox",
}


class DemoBuildHook(BuildHookInterface[Any]):
    """Adds the demo to a wheel. An editable install has the repository, which holds all of it."""

    PLUGIN_NAME = "custom"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._staging_folder = Path(tempfile.gettempdir()) / f"byline-demo-{uuid4()}"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the demo's files to a folder of their own and add them to the wheel. Raises ValueError."""
        if version == "editable":
            return
        root_folder = Path(self.root)
        for source_folder in _SOURCE_FOLDERS:
            for source_path in sorted((root_folder / source_folder).glob("*.*")):
                if source_path.suffix not in {".py", ".yml"}:
                    continue
                file_text = source_path.read_text(encoding="utf-8")
                if source_path.suffix == ".py":
                    file_text = _IMPORT_PATTERN.sub(rf"\1{_DEMO_PACKAGE}.\2", file_text)
                self._add_file(f"{Path(source_folder).name}/{source_path.name}", file_text, build_data)
        compose_text = (root_folder / _COMPOSE_FILE).read_text(encoding="utf-8")
        for repository_text, wheel_text in _COMPOSE_REPLACEMENTS.items():
            if repository_text not in compose_text:
                raise ValueError(
                    f"{_COMPOSE_FILE} does not say '{repository_text}' any more: correct {__file__}"
                )
            compose_text = compose_text.replace(repository_text, wheel_text)
        self._add_file(f"stack/{_COMPOSE_FILE}", compose_text, build_data)
        self._add_file("__init__.py", '"""The demo of the development stack."""\n', build_data)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the folder that `initialize` wrote to."""
        del version, build_data, artifact_path
        shutil.rmtree(self._staging_folder, ignore_errors=True)

    def _add_file(self, demo_path: str, file_text: str, build_data: dict[str, Any]) -> None:
        staging_path = self._staging_folder / demo_path
        staging_path.parent.mkdir(parents=True, exist_ok=True)
        staging_path.write_text(file_text, encoding="utf-8")
        build_data["force_include"][str(staging_path)] = f"{_DEMO_FOLDER}/{demo_path}"
