"""Reads the repository's Markdown as a reader would: its blocks, its tables, its links; it judges none of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)

_FENCE = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it shows where it names one, and its text."""

    language: str
    file: str | None
    text: str


def read_blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    return [Block(*fence_parts) for fence_parts in _FENCE.findall(page.read_text())]


def read_prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def list_links(page: Path) -> list[str]:
    """Where a page's links lead."""
    return _LINK.findall(read_prose(page))


def list_anchors(page: Path) -> set[str]:
    """The names by which GitHub knows a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(read_prose(page))
    }


def read_table(page: Path, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is called `first`, by what that column holds."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            return dict(_rows(lines))
    raise LookupError(f"{page} has no table that begins with a column '{first}'")


def list_code(text: str) -> list[str]:
    """What a text sets in code."""
    return _CODE.findall(text)


def _rows(lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    for line in lines:
        if not line.startswith("|"):
            return
        name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        yield name.strip("` "), cells
