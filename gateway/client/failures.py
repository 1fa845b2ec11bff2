"""What can go wrong for somebody at a terminal, each with the code that the program exits with; it prints nothing."""

from typing import ClassVar

from engine.errors import BylineError


class CommandFailed(BylineError):
    """The gateway did not do what was asked, or a run did not end well."""

    code: ClassVar[str] = "command_failed"
    exit_code: ClassVar[int] = 1


class WrongUse(CommandFailed):
    """What was asked for makes no sense as it was written."""

    code = "wrong_use"
    exit_code = 2


class Refused(CommandFailed):
    """Nobody is signed in, or whoever is may not do this."""

    code = "refused"
    exit_code = 4


class NotThere(CommandFailed):
    """What was named does not exist, or is not for whoever asked."""

    code = "not_there"


class GatewaySilent(CommandFailed):
    """The gateway, or what it needs to answer, cannot be reached."""

    code = "gateway_silent"
    exit_code = 5
