import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from _pytest.mark import ParameterSet

from engine.interpolation import interpolate_variables
from engine.policy.policy import PolicyFile
from engine.sign_in.declarations import CONNECTIONS_ADAPTER
from gateway.toolsets import ToolsetsFile
from tests.docs.command_line import parse
from tests.docs.markdown import PAGES, ROOT, Block, list_anchors, list_links, read_blocks, read_prose
from tests.docs.variables import VARIABLES

BLOCKS = {
    f"{page.relative_to(ROOT)}-{place}": block
    for page in PAGES
    for place, block in enumerate(read_blocks(page))
}
LANGUAGES = {"sh", "json", "yaml", "toml", "python", "mermaid", "text"}
PROGRAMS = {
    *("byline", "claude", "export", "make", "npx", "pip", "temporal"),
    *(".venv/bin/byline", ".venv/bin/pip", ".venv/bin/pytest"),
}
EXAMPLE = ROOT / "examples" / "kinto_notes"


def parametrize_blocks(language: str) -> list[ParameterSet]:
    return [pytest.param(block, id=place) for place, block in BLOCKS.items() if block.language == language]


def read_commands(block: Block) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.text.splitlines()]


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_block_that_names_a_file_shows_what_is_in_it(block: Block) -> None:
    assert block.language in LANGUAGES
    assert block.language != "python" or block.file
    if block.file:
        assert block.text in (ROOT / block.file).read_text()


def test_the_readme_shows_every_file_of_the_example_whole() -> None:
    shown_texts = {block.file: block.text for block in read_blocks(ROOT / "README.md") if block.file}
    there = {
        str(path.relative_to(ROOT)): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.suffix in {".py", ".toml", ".yml"} and path.name != "__init__.py"
    }

    assert shown_texts == there


@pytest.mark.parametrize("block", parametrize_blocks("sh"))
def test_a_command_that_is_shown_exists_and_takes_what_it_is_given(block: Block) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in read_commands(block):
        assert words[0] in PROGRAMS
        if words[0] == "make":
            assert words[1] in targets
        if words[0].endswith("byline"):
            parse(words[1:])


@pytest.mark.parametrize("block", parametrize_blocks("json"))
def test_json_that_is_shown_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", parametrize_blocks("yaml"))
def test_a_file_that_is_shown_declares_connections_toolsets_or_a_policy(block: Block) -> None:
    document: dict[str, Any] = interpolate_variables(yaml.safe_load(block.text), _AnyVariable())
    if "connections" not in document:
        (ToolsetsFile if "toolsets" in document else PolicyFile).model_validate(document)
        return
    CONNECTIONS_ADAPTER.validate_python(
        {name: {"name": name, **body} for name, body in document["connections"].items()}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in list_links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in list_anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_setting_that_is_named_exists(page: Path) -> None:
    variable_names = set(re.findall(r"BYLINE_[A-Z_]+", page.read_text()))

    assert variable_names <= VARIABLES.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_of_the_house_that_is_named_exists(page: Path) -> None:
    rooms = "engine|gateway|workflows|activities|examples|tests|migrations|benchmarks|docs"
    file_names = re.findall(rf"`((?:{rooms})/[\w./-]*)`", read_prose(page))

    assert not [name for name in file_names if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_page_can_be_reached_from_the_readme(path: Path) -> None:
    reached_pages, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached_pages.add(page)
        linked_pages = (
            (page.parent / link.partition("#")[0]).resolve() for link in list_links(page) if ".md" in link
        )
        ahead.extend(target for target in linked_pages if target.exists() and target not in reached_pages)

    assert path in reached_pages


class _AnyVariable(dict[str, str]):
    """An environment in which everything is set to an address."""

    def get(self, key: str, _default: Any = None) -> Any:
        return f"https://{key.lower().replace('_', '-')}.example.com"
