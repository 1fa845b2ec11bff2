"""Reports the progress of a run. Workflow code may import this module."""

from temporalio import workflow

from engine.wire import PROGRESS_MEMO


def progress(message: str, *, done: float | None = None, of: float | None = None) -> None:
    """Report how far this workflow is to all who follow the run. The history keeps the message: put no secret in it."""
    workflow.upsert_memo({PROGRESS_MEMO: {"message": message, "done": done, "of": of}})
