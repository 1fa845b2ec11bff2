import ast
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "promises.md"
PROMISES = {
    section.partition("\n")[0]: re.findall(r"^- `(tests/[^`]+)`$", section, re.MULTILINE)
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]
}
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))


def read_sentences(file: Path) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_held_by_tests_that_exist(promise: str) -> None:
    assert PROMISES[promise]
    for held_by in PROMISES[promise]:
        file, _, test = held_by.partition("::")
        assert (ROOT / file).is_file(), held_by
        assert test in read_sentences(Path(file)) if test else read_sentences(Path(file)), held_by


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_test_holds_a_promise(file: Path) -> None:
    holds = {held_by.partition("::")[0] for tests in PROMISES.values() for held_by in tests}

    assert str(file) in holds
