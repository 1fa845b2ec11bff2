"""Measures the names of Python source: `python -m tests.unit.names engine gateway` prints the figures of two folders.

A binding is a function, a class, a parameter other than `self` and `cls`, or an assignment to a variable or an
attribute. Underscores at the ends of a name do not count.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

BARE_PARTICIPLES = frozenset(
    {
        *(
            "allowed",
            "answered",
            "asked",
            "begun",
            "chosen",
            "declared",
            "described",
            "drawn",
            "ended",
            "found",
        ),
        *(
            "given",
            "heard",
            "held",
            "kept",
            "known",
            "lost",
            "made",
            "named",
            "opened",
            "owed",
            "refused",
            "said",
        ),
        *("seen", "settled", "shown", "spoken", "taken", "told", "waited", "wanted"),
    }
)


@dataclass(frozen=True)
class Binding:
    """One place at which a name is bound. `kind` is function, class, parameter or variable."""

    name: str
    kind: str
    place: str

    @property
    def is_bare_participle(self) -> bool:
        """Return whether the whole name is one participle."""
        return self.name.lower() in BARE_PARTICIPLES


@dataclass(frozen=True)
class NameFigures:
    """The figures of some bindings, for which the product's rule sets limits."""

    bindings: tuple[Binding, ...]

    @property
    def bare_participle_percent(self) -> float:
        """Return the share of bindings whose name is a bare participle."""
        return 100 * sum(binding.is_bare_participle for binding in self.bindings) / max(len(self.bindings), 1)

    @property
    def mean_length_chars(self) -> float:
        """Return the mean length of a name."""
        return sum(len(binding.name) for binding in self.bindings) / max(len(self.bindings), 1)

    @property
    def vague_loop_variables(self) -> list[Binding]:
        """Return the variables called `each`."""
        return [binding for binding in self.bindings if binding.kind == "variable" and binding.name == "each"]

    @property
    def repeated_classes(self) -> dict[str, list[str]]:
        """Return the places of each class name that is used more than once."""
        places_by_name = defaultdict(list)
        for binding in self.bindings:
            if binding.kind == "class":
                places_by_name[binding.name].append(binding.place)
        return {name: places for name, places in places_by_name.items() if len(places) > 1}

    @property
    def bare_definitions(self) -> list[Binding]:
        """Return the functions and classes whose name is a bare participle."""
        return [
            binding
            for binding in self.bindings
            if binding.kind in {"function", "class"} and binding.is_bare_participle
        ]

    def __str__(self) -> str:
        """Return the figures in one line."""
        return (
            f"{len(self.bindings)} names: {self.bare_participle_percent:.2f} % bare participles, "
            f"mean length {self.mean_length_chars:.1f}, `each` {len(self.vague_loop_variables)}, "
            f"{len(self.repeated_classes)} class names used twice, "
            f"{len(self.bare_definitions)} functions or classes that are one bare word"
        )


def measure_names(folders: Iterable[Path]) -> NameFigures:
    """Return the figures of all Python files below the folders."""
    python_files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return NameFigures(tuple(binding for file in python_files for binding in find_bindings(file)))


def find_bindings(python_file: Path) -> Iterator[Binding]:
    """Yield the bindings of one file."""
    for node in ast.walk(ast.parse(python_file.read_text())):
        for name, kind, line in _bind_names(node):
            stripped_name = name.strip("_")
            if stripped_name:
                yield Binding(stripped_name, kind, f"{python_file}:{line}")


def _bind_names(node: ast.AST) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, ast.ClassDef):
        yield node.name, "class", node.lineno
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name, "function", node.lineno
        for parameter in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if parameter.arg not in {"self", "cls"}:
                yield parameter.arg, "parameter", parameter.lineno
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, "variable", node.lineno
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr, "variable", node.lineno


if __name__ == "__main__":
    name_figures = measure_names(Path(argument) for argument in sys.argv[1:])
    for bare_binding in name_figures.bindings:
        if bare_binding.is_bare_participle:
            sys.stdout.write(f"{bare_binding.place}: {bare_binding.name}\n")
    for class_name, class_places in name_figures.repeated_classes.items():
        sys.stdout.write(f"class {class_name}: {', '.join(class_places)}\n")
    sys.stdout.write(f"{name_figures}\n")
