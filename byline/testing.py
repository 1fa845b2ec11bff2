"""The workbench on which a builder's tests run their tools. Only tests import it."""

from engine.testing import Failed, Finished, Outcome, PendingWaits, Question, Running, Workbench, workbench

__all__ = ["Failed", "Finished", "Outcome", "PendingWaits", "Question", "Running", "Workbench", "workbench"]
