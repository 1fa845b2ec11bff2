"""Becomes a command that on Linux dies with its parent, also by SIGKILL; it imports nothing of Byline.

python child.py PARENT_PID COMMAND ARGUMENT…
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tie this process to `parent` and replace it with `command`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the tie was made.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - the stack's own command line, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
