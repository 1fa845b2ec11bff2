"""Lets a run report that a resource has changed. It is safe to import from workflow code."""

from datetime import timedelta
from typing import Final

from temporalio import workflow

from engine.wire import CHANGED_ACTIVITY

_ATTEMPT_TIMEOUT: Final = timedelta(seconds=30)


async def changed(uri: str) -> None:
    """Tell every client that listens for it that the resource at this address is to be read again.

    A listener receives the address and nothing else, and only where policy lets it read the resource.
    """
    await workflow.execute_activity(
        CHANGED_ACTIVITY, uri, start_to_close_timeout=_ATTEMPT_TIMEOUT, summary=uri[:200]
    )
