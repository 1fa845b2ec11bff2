"""Runs `byline` as an administrator would, told everything by its environment."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("byline")


@dataclass(frozen=True)
class Ended:
    """What became of a command."""

    code: int | None
    out: str
    err: str


@dataclass(frozen=True)
class Commands:
    """The command line, in a surrounding of its own."""

    environment: Mapping[str, str]
    folder: Path

    async def answer(self, *arguments: str) -> str:
        """Run a command that goes well, and give what it says."""
        ended = await self(*arguments)
        assert ended.code == 0, ended.err
        return ended.out

    async def refusal(self, *arguments: str) -> str:
        """Run a command that is refused as foreseen, and give what it says of that."""
        ended = await self(*arguments)
        assert (ended.code, ended.out) == (1, ""), ended
        return ended.err

    async def __call__(self, *arguments: str) -> Ended:
        """Run a command in a process of its own."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.folder,
            env={**foreign, "COLUMNS": "200", **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Ended(process.returncode, out.decode(), err.decode())
