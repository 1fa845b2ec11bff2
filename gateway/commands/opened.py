"""The services of one command, by the environment that it was started in; it reads nothing else."""

import os
from contextlib import AbstractAsyncContextManager

from engine.services import Services, open_services
from engine.settings import Settings


def services_here() -> AbstractAsyncContextManager[Services]:
    """Everything that a command may need, open until the block ends."""
    return open_services(Settings(), os.environ)
