"""Opens the services for one command, with the settings of its environment. It reads nothing else."""

import os
from contextlib import AbstractAsyncContextManager

from engine.services import Services, open_services
from engine.settings import Settings


def open_command_services() -> AbstractAsyncContextManager[Services]:
    """Open all services that a command may need, until the block ends."""
    return open_services(Settings(), os.environ)
