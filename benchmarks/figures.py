"""Collects samples and formats them as Markdown tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field


class Samples:
    """Durations of one kind of work, in seconds."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, *seconds: float) -> None:
        """Add measured durations."""
        self._seconds.extend(seconds)

    def percentile(self, share: float) -> float:
        """Return the nearest-rank percentile, in milliseconds."""
        sorted_seconds = sorted(self._seconds)
        return sorted_seconds[min(len(sorted_seconds) - 1, int(share * len(sorted_seconds)))] * 1000

    @property
    def p50(self) -> float:
        """The median, in milliseconds."""
        return self.percentile(0.5)

    @property
    def p95(self) -> float:
        """The 95th percentile, in milliseconds."""
        return self.percentile(0.95)


@dataclass
class Section:
    """The figures of one suite: tables and sentences in their order, under a title."""

    title: str
    parts: list[str] = field(default_factory=list)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table whose first column contains words and whose other columns contain figures."""
        lines = [columns, ["---", *(["---:"] * (len(columns) - 1))], *rows]
        self.parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))

    def say(self, sentence: str) -> None:
        """Add a paragraph."""
        self.parts.append(sentence)

    def markdown(self) -> str:
        """Return the tables and sentences as Markdown, without the title."""
        return "\n\n".join(self.parts)


def goal(value: float, limit: float, text: str) -> str:
    """Return a sentence that says whether a figure meets its goal."""
    return f"{text} (goal: at most {limit:g}): {'met' if value <= limit else 'missed'}."


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
