import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.installation import ROOT, wait_until

COMMAND = (sys.executable, "-m", "examples.demo")
STORY = (
    "alice is asked for three sign-ins at once",
    "kill -9 worker",
    "kill -9 gateway",
    "kill -9 temporal",
    "the run continued where it had stopped and finished",
    "permission_denied: Acme CRM does not permit this to bob.baker@acme-crm.example (Bob Baker).",
    "Who changed ticket 35436?",
    "Alice Liddell",
    "The trail holds",
)


async def start_demo(place: Path) -> asyncio.subprocess.Process:
    """Start the demo so that it keeps all it has in this place, at the head of a process group as a shell does."""
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def list_leftovers(place: Path) -> list[str]:
    """The processes that were started in this place and still run."""
    leftovers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if command and f"TMPDIR={place}".encode() in environment.split(b"\0"):
            leftovers.append(command.replace(b"\0", b" ").decode())
    return leftovers


async def test_the_demo_plays_its_whole_story_each_time_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        playing = await start_demo(tmp_path)
        output = (await playing.communicate())[0].decode()

        assert playing.returncode == 0, output
        missing = [line for line in STORY if line not in output]
        assert not missing, output
        assert list_leftovers(tmp_path) == []
        assert list(tmp_path.iterdir()) == []


async def test_ctrl_c_stops_the_demo_and_all_that_it_started(tmp_path: Path) -> None:
    playing = await start_demo(tmp_path)
    assert playing.stdout is not None
    async for line in playing.stdout:
        if b"kill -9 worker" in line:
            break
    assert len(list_leftovers(tmp_path)) > 5
    os.killpg(playing.pid, signal.SIGINT)
    output = (await playing.stdout.read()).decode()

    assert await playing.wait() == 130, output
    assert output.splitlines()[-1].endswith("stopped")
    await wait_until(lambda: list_leftovers(tmp_path) == [])
    assert list(tmp_path.iterdir()) == []
