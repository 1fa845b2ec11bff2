"""The text of notes: which run, what it needs of a person, and where. Never a secret, an argument or a result."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

Subject = Literal["waiting", "ended", "test"]
Outcome = Literal["completed", "failed", "cancelled"]

WHY: Final = {
    "authorization_denied": "the sign-in that it needed was declined",
    "authorization_expired": "nobody answered in time",
    "authorization_cancelled": "its wait for an answer was cancelled",
    "question_declined": "its question was not answered, but declined",
    "question_expired": "nobody answered its question in time",
    "question_cancelled": "its wait for an answer was cancelled",
    "approval_denied": "the approval that it needed was refused",
    "approval_expired": "nobody approved it in time",
    "permission_denied": "an upstream system does not permit this to the account that was used",
    "record_not_found": "an upstream system has no such record",
    "request_rejected": "an upstream system rejected the request",
    "upstream_unavailable": "an upstream system cannot be reached",
    "rate_limited": "an upstream system asked to slow down",
    "outcome_unknown": "an upstream system did not answer, so look whether the change was made before you repeat it",
    "principal_inactive": "the person that it acted for was deactivated",
    "not_allowed": "the policy does not allow it any more",
}
"""Why a run failed, in words, by the code of its error. For any other code a note only says that the run failed."""


@dataclass(frozen=True, slots=True)
class Note:
    """One message to one person; `id` stays the same when it is sent again."""

    id: str
    subject: Subject
    title: str
    text: str
    at: datetime
    data: dict[str, Any]
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a run waits for; `action` completes the sentence "You are asked to …"."""

    kind: Literal["connection", "question", "approval"]
    action: str
    link: str
    expires_at: datetime


def waiting(note_id: str, run_id: str, tool: str, title: str, waits: Waiting, at: datetime) -> Note:
    """Compose the note that a run cannot go on without this person."""
    until = f"{waits.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    data = {
        "run_id": run_id,
        "tool": tool,
        "title": title,
        "waits_for": waits.kind,
        "url": waits.link,
        "expires_at": waits.expires_at.astimezone(UTC).isoformat(),
    }
    return Note(
        note_id,
        "waiting",
        _line(f"{title} waits for you"),
        f"You are asked to {_line(waits.action)}. The run {run_id} goes on by itself once you have.\n"
        f"The link works for you alone, signed in to Byline, until {until}.",
        at,
        data,
        waits.link,
    )


def ended(
    note_id: str, run_id: str, tool: str, title: str, outcome: Outcome, code: str | None, at: datetime
) -> Note:
    """Compose the note that a run is over, without its result, which may hold anything."""
    why = WHY.get(code or "")
    words = {
        "completed": "completed",
        "cancelled": "was cancelled",
        "failed": "failed" if why is None else f"failed: {why}",
    }[outcome]
    known = code if why is not None else None
    data = {"run_id": run_id, "tool": tool, "title": title, "outcome": outcome, "error": known}
    text = f"The run {run_id} {words}."
    return Note(note_id, "ended", _line(f"{title} {words.partition(':')[0]}"), text, at, data)


def test(note_id: str, at: datetime) -> Note:
    """Compose the note with which somebody tries their channel."""
    text = "You, or somebody signed in as you, asked for this note to see whether it arrives."
    return Note(note_id, "test", "Byline can reach you", text, at, {})


def _line(text: str) -> str:
    """Return the text on one line, whatever characters a name or a title holds."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
