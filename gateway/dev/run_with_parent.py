"""Runs a command that on Linux ends with its parent, even if SIGKILL ends the parent.

It imports nothing of Byline.

python child.py PARENT_PID COMMAND ARGUMENT…
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command_line: list[str]) -> None:
    """Make this process end with `parent_pid`, and replace it with the command. Exits with 1 if the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before prctl was called.
    if os.getppid() != parent_pid:
        sys.exit(1)
    os.execvp(command_line[0], command_line)  # noqa: S606 - the stack's own command line, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
