"""How far the progress of a call's run has been reported to its client, over all requests of the call."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_MIN_INCREMENT: Final = 1e-6


class ProgressCursor(BaseModel):
    """What was reported last: when that step happened and, where there was one, the progress number.

    The aliases are the names in sealed request states, which outlive a release.
    """

    model_config = ConfigDict(populate_by_name=True)

    last_step_epoch_seconds: float = Field(default=0.0, alias="at")
    last_number: float | None = Field(default=None, alias="number")
    is_step_count: bool = Field(default=False, alias="counts")
    """Whether the last number was a count of steps."""

    def advance_number(self, reported_number: float | None) -> float:
        """Return a progress number that is larger than the last, as MCP requires.

        It is the number that the tool reports, and for a step in between slightly more than the last. Before the tool
        reports any number, steps are counted.
        """
        if self.last_number is None:
            next_number = 1.0 if reported_number is None else reported_number
            self.is_step_count = reported_number is None
        elif reported_number is not None and (reported_number > self.last_number or self.is_step_count):
            next_number = max(reported_number, self.last_number + _MIN_INCREMENT)
            self.is_step_count = False
        else:
            next_number = self.last_number + (1.0 if self.is_step_count else _MIN_INCREMENT)
        self.last_number = next_number
        return next_number
