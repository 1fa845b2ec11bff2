"""Runs a program that others wrote as a process of its own, and ends that process and no other."""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pwd import struct_passwd
from signal import SIGTERM, Signals
from typing import TypedDict

START_WITHIN = 60.0
STOP_WITHIN = 20.0
ASK_EVERY = 0.05


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_listening(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections at this port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class OwnerArguments(TypedDict, total=False):
    """The arguments of `subprocess` that say whose process it is."""

    user: int
    group: int
    extra_groups: list[int]


def build_owner_arguments(account: struct_passwd | None) -> OwnerArguments:
    """Give a process to this account, or leave it with whoever starts it."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@contextmanager
def run_program(
    command: Sequence[str],
    *,
    log: Path,
    port: int,
    account: struct_passwd | None = None,
    stop: Signals = SIGTERM,
) -> Iterator[None]:
    """Hold the program running from the moment it listens at `port`; it writes its output to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            **build_owner_arguments(account),
        )
    try:
        deadline = time.monotonic() + START_WITHIN
        while not is_listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                state = "still starts" if process.returncode is None else f"ended with {process.returncode}"
                raise RuntimeError(f"{command[0]} {state}, it said:\n{log.read_text()}")
            time.sleep(ASK_EVERY)
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
