"""Runs `byline` as an administrator would, told everything by its environment."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

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

    async def __call__(self, *arguments: str, given: str = "") -> Ended:
        """Run a command in a process of its own, with `given` as its standard input."""
        process = await self._started(*arguments)
        out, err = await process.communicate(given.encode())
        return Ended(process.returncode, out.decode(), err.decode())

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
        """What a command that runs says on standard error; it is killed at the end of the block."""
        process = await self._started(*arguments)
        assert process.stderr is not None
        try:
            yield process.stderr
        finally:
            process.kill()
            await process.communicate()
            assert process.returncode == -SIGKILL

    async def _started(self, *arguments: str) -> asyncio.subprocess.Process:
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
        return await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.folder,
            env={**foreign, "COLUMNS": "200", **self.environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
