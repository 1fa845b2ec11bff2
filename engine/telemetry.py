"""Configures the logs of a process. Request lines and bodies of HTTP clients are never logged."""

import logging
import sys

import structlog

# At INFO these log the URL of each request, whose query may contain an authorization code or a state.
_QUIET = ("httpx2", "httpcore2", "authlib")


def configure_logging(level: str) -> None:
    """Log events of this level and above, one line for each event."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    threshold = logging.getLevelNamesMapping()[level]
    *earlier, _ = structlog.get_config()["processors"]
    # If rich is installed, structlog would print the local variables of each frame, which contain tokens.
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[*earlier, plain], wrapper_class=structlog.make_filtering_bound_logger(threshold)
    )
