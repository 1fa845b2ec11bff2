"""The benchmarks' command line: runs the suites, prints their figures as Markdown, and records them on request.

python -m benchmarks [--only SUITE]… [--record]
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks import action, call, callers, held, park, settings, wake
from benchmarks.figures import Section
from benchmarks.machine import describe_machine

_DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Suite(StrEnum):
    """A suite of measurements."""

    CALL = "call"
    CALLERS = "callers"
    HELD = "held"
    ACTION = "action"
    WAKE = "wake"
    PARK = "park"
    SETTINGS = "settings"


_MEASURES: dict[Suite, Callable[[], Awaitable[Section]]] = {
    Suite.CALL: call.measure,
    Suite.CALLERS: callers.measure,
    Suite.HELD: held.measure,
    Suite.ACTION: action.measure,
    Suite.WAKE: wake.measure,
    Suite.PARK: park.measure,
    Suite.SETTINGS: settings.measure,
}


def main(
    only: Annotated[list[Suite] | None, typer.Option(help="run only this suite; may be repeated")] = None,
    record: Annotated[bool, typer.Option(help="write the figures to docs/benchmarks.md")] = False,  # noqa: FBT002
) -> None:
    """Compare Byline with raw Temporal."""
    uvloop.run(_run(only or list(Suite), record=record))


async def _run(suites: list[Suite], *, record: bool) -> None:
    for suite in suites:
        where = f"Measured on {describe_machine()}."
        section = await _MEASURES[suite]()
        section.say(where)
        print(f"## {section.title}\n\n{section.markdown()}\n", flush=True)
        if record:
            await asyncio.to_thread(_write_section, suite, section.markdown())


def _write_section(suite: Suite, figures: str) -> None:
    """Replace the figures between this suite's markers in the document."""
    begin, end = f"<!-- figures of {suite} -->", f"<!-- end of {suite} -->"
    text, lines_written = re.subn(
        f"{begin}.*{end}",
        lambda _: f"{begin}\n\n{figures}\n\n{end}",
        _DOCUMENT.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert lines_written == 1, f"{_DOCUMENT} has no place for the figures of {suite}"
    _DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
