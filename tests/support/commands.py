"""Runs `byline` as an administrator would, told everything by its environment."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from signal import SIGKILL
from unittest.mock import patch

import pytest

from gateway.cli import main

PROGRAM = Path(sys.executable).with_name("byline")


@dataclass(frozen=True)
class CommandResult:
    """What became of a command."""

    code: object
    out: str
    err: str


@dataclass(frozen=True)
class Commands:
    """The command line as a program, in a surrounding of its own."""

    environment: Mapping[str, str]
    folder: Path

    async def read_output(self, *arguments: str) -> str:
        """Run a command that goes well, and give what it says."""
        result = await self(*arguments)
        assert result.code == 0, result.err
        return result.out

    async def read_refusal(self, *arguments: str) -> str:
        """Run a command that is refused as foreseen, and give what it says of that."""
        result = await self(*arguments)
        assert (result.code, result.out) == (1, ""), result
        return result.err

    async def __call__(self, *arguments: str, stdin_text: str = "") -> CommandResult:
        """Run a command, with `given` as its standard input."""
        process = await self._start_process(*arguments)
        out, err = await process.communicate(stdin_text.encode())
        return CommandResult(process.returncode, out.decode(), err.decode())

    @asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
        """What a command that runs says on standard error; it is killed at the end of the block."""
        process = await self._start_process(*arguments)
        assert process.stderr is not None
        try:
            yield process.stderr
        finally:
            process.kill()
            await process.communicate()
            assert process.returncode == -SIGKILL

    async def _start_process(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.folder,
            env=self._whole_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def _whole_environment(self) -> dict[str, str]:
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
        return {**foreign, "COLUMNS": "200", **self.environment}


class InProcessCommands(Commands):
    """The same command line in this process, where it starts ten times faster: for what is no matter of the process.

    A command has an event loop, services and database connections of its own all the same.
    """

    async def __call__(self, *arguments: str, stdin_text: str = "") -> CommandResult:
        """Run a command, with `given` as its standard input."""
        return await asyncio.to_thread(self._run_in_process, arguments, stdin_text)

    def _run_in_process(self, arguments: tuple[str, ...], stdin_text: str) -> CommandResult:
        out, err = StringIO(), StringIO()
        with (
            patch.dict(os.environ, self._whole_environment(), clear=True),
            patch.multiple(sys, argv=["byline", *arguments], stdin=StringIO(stdin_text)),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as result,
        ):
            main()
        return CommandResult(result.value.code, out.getvalue(), err.getvalue())
