"""How far a run says that it is; safe to import from workflow code."""

from temporalio import workflow

from engine.wire import PROGRESS_MEMO


def progress(message: str, *, done: float | None = None, of: float | None = None) -> None:
    """Tell how far this workflow is to whoever follows the run; the history keeps it, so hold no secret in it."""
    workflow.upsert_memo({PROGRESS_MEMO: {"message": message, "done": done, "of": of}})
