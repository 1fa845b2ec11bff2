"""The errors of the command line, each with the exit code of the program. This module prints nothing."""

from typing import ClassVar

from engine.errors import BylineError


class CommandFailed(BylineError):
    """The gateway did not do what was asked, or a run did not complete."""

    code: ClassVar[str] = "command_failed"
    exit_code: ClassVar[int] = 1


class UsageInvalid(CommandFailed):
    """The command or an argument makes no sense as it was written."""

    code = "wrong_use"
    exit_code = 2


class AccessRefused(CommandFailed):
    """Nobody is signed in, or the caller may not do this."""

    code = "refused"
    exit_code = 4


class ResourceNotFound(CommandFailed):
    """The resource does not exist, or the caller may not see it."""

    code = "not_there"


class GatewayUnreachable(CommandFailed):
    """The gateway, or a service that it needs to answer, cannot be reached."""

    code = "gateway_silent"
    exit_code = 5
