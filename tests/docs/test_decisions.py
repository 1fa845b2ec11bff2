import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, list_links

DECISIONS = ROOT / "docs" / "decisions"
PAGES = sorted(DECISIONS.glob("[0-9]*.md"))


def test_decisions_are_numbered_one_after_the_other() -> None:
    assert [int(page.name[:4]) for page in PAGES] == list(range(1, len(PAGES) + 1))


def test_the_index_lists_every_decision() -> None:
    assert [link for link in list_links(DECISIONS / "README.md") if link[0].isdigit()] == [
        page.name for page in PAGES
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_says_why_what_and_what_follows(page: Path) -> None:
    text = page.read_text()

    assert text.startswith(f"# {page.name[:4]}: ")
    assert re.findall(r"^(?:> )?\*\*(\w+)", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
        "Alternatives",
        "Enforced",
    ]
    assert len(re.findall(r"^> ", text, re.MULTILINE)) == 1
