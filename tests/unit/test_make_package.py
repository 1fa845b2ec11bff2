from pathlib import Path

import pytest

from engine.errors import SettingsInvalid
from gateway.dev.new import make_package


@pytest.mark.parametrize(
    "name", ["My-Tools", "my_tools", "my--tools", "-tools", "2nd-tools", "my tools", "../tools", "", "a" * 41]
)
def test_a_name_that_is_none_is_refused_with_one_that_would_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="such as my-tools"):
        make_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["class", "json", "engine", "gateway", "pytest", "tests", "byline"])
def test_a_name_that_would_hide_another_package_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=f"'{name}' means something else here"):
        make_package(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my-tools").mkdir()
    (tmp_path / "my-tools" / "README.md").write_text("Mine")

    with pytest.raises(SettingsInvalid, match="is there already"):
        make_package("my-tools", tmp_path)

    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["Mine"]


def test_a_package_bears_its_own_name_everywhere(tmp_path: Path) -> None:
    package_path = make_package("night-shift", tmp_path / "not" / "there" / "yet")
    files = [path for path in package_path.rglob("*") if path.is_file()]

    assert {str(path.relative_to(package_path)) for path in files} == {
        "README.md",
        "connections.yml",
        "night_shift/__init__.py",
        "night_shift/actions.py",
        "night_shift/workflows.py",
        "pyproject.toml",
        "tests/test_add_note.py",
    }
    assert not [path for path in files if "my-tools" in path.read_text() or "my_tools" in path.read_text()]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingsInvalid, match="choose another place"):
        make_package("my-tools", tmp_path / "file")
