"""Holds the figures of the naming rule, docs/decisions/0064-names-are-the-fields-words.md."""

from pathlib import Path

import pytest

from tests.unit.names import NameFigures, measure_names

ROOT = Path(__file__).parents[2]
MAX_BARE_PARTICIPLE_PERCENT = 0.3
MIN_MEAN_LENGTH_CHARS = 8.5
MAX_REPEATED_CLASSES = 5


@pytest.fixture(scope="module")
def figures() -> NameFigures:
    return measure_names(ROOT / folder for folder in ("engine", "gateway", "activities", "workflows"))


def test_hardly_a_name_is_a_bare_participle(figures: NameFigures) -> None:
    bare_bindings = [
        f"{binding.place}: {binding.name}" for binding in figures.bindings if binding.is_bare_participle
    ]

    assert figures.bare_participle_percent <= MAX_BARE_PARTICIPLE_PERCENT, bare_bindings


def test_names_are_long_enough_to_say_what_they_hold(figures: NameFigures) -> None:
    assert figures.mean_length_chars >= MIN_MEAN_LENGTH_CHARS


def test_a_loop_variable_is_the_noun(figures: NameFigures) -> None:
    assert figures.vague_loop_variables == []


def test_a_class_name_is_used_once(figures: NameFigures) -> None:
    assert len(figures.repeated_classes) <= MAX_REPEATED_CLASSES, figures.repeated_classes


def test_a_function_or_class_is_more_than_one_bare_word(figures: NameFigures) -> None:
    assert figures.bare_definitions == []


def test_every_kind_of_binding_is_measured(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        "class Told:\n"
        "    def asked(self, found, *, count=0):\n"
        "        self.given = [each for each in found]\n"
        "class _Told:\n"
        "    pass\n"
    )

    figures = measure_names([tmp_path])

    assert [binding.name for binding in figures.bindings if binding.is_bare_participle] == [
        *("Told", "Told", "asked", "found", "given"),
    ]
    assert list(figures.repeated_classes) == ["Told"]
    assert [binding.name for binding in figures.bare_definitions] == ["Told", "Told", "asked"]
    assert len(figures.vague_loop_variables) == 1
    assert len(figures.bindings) == 7
