"""Says who uses the shell in which a command runs, for the audit trail."""

import os
import pwd
import socket

from engine.identity.model import ShellUser


def read_shell_user() -> ShellUser:
    """Return the operating system's user of this process, by name or else by number, and the host."""
    user_id = os.getuid()
    try:
        username = pwd.getpwuid(user_id).pw_name
    except KeyError:
        # A container may run as a user without an entry.
        username = str(user_id)
    return ShellUser(username, socket.gethostname())
