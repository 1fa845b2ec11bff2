"""Configures the logs of a process. Request lines and bodies of HTTP clients are never logged."""

import logging
import sys

import structlog

# At INFO these log the URL of each request, whose query may contain an authorization code or a state.
_QUIET_LOGGERS = ("httpx2", "httpcore2", "authlib")


def configure_logging(level_name: str) -> None:
    """Log events of this level and above, one line for each event."""
    logging.basicConfig(level=level_name, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for logger_name in _QUIET_LOGGERS:
        logging.getLogger(logger_name).setLevel(logging.WARNING)
    level_number = logging.getLevelNamesMapping()[level_name]
    *default_processors, _ = structlog.get_config()["processors"]
    # If rich is installed, structlog would print the local variables of each frame, which contain tokens.
    console_renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[*default_processors, console_renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level_number),
    )
