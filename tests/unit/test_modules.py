from pathlib import Path

import pytest

from engine.errors import SettingsInvalid
from engine.tools.registry import Registry


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A builder's package without anything in it, of another name in each test since Python imports a name once."""
    folder = tmp_path / tmp_path.name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_package_offers_what_any_of_its_modules_defines(package: Path) -> None:
    (package / "greeting.py").write_text(
        "from temporalio import workflow\n"
        "from engine.sdk import tool\n"
        "@tool(title='Greet')\n"
        "@workflow.defn(name='greet')\n"
        "class GreetWorkflow:\n"
        "    'Say hello.'\n"
        "    @workflow.run\n"
        "    async def run(self) -> None: ...\n"
    )

    assert Registry((package.name,)).find_tool("greet").description == "Say hello."


def test_a_missing_module_is_reported_with_the_setting_that_names_it() -> None:
    with pytest.raises(SettingsInvalid, match=r"no module 'nowhere\.at_all'.*BYLINE_MODULES"):
        Registry(("nowhere.at_all",))


@pytest.mark.parametrize("file", ["__init__.py", "broken.py"])
def test_a_missing_import_of_a_module_is_reported_by_its_own_name(file: str, package: Path) -> None:
    (package / file).write_text("import nowhere.at_all\n")
    with pytest.raises(SettingsInvalid, match=rf"Module '{package.name}\S*' imports 'nowhere'"):
        Registry((package.name,))
