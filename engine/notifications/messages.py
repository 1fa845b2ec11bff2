"""The text of notes: which run, what it needs of a person, and where. Never a secret, an argument or a result."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

NoteSubject = Literal["waiting", "ended", "test"]
RunOutcome = Literal["completed", "failed", "cancelled"]

FAILURE_REASONS: Final = {
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
class ChannelNote:
    """One message to one person; `id` stays the same when it is sent again."""

    id: str
    subject: NoteSubject
    title: str
    body_text: str
    occurred_at: datetime
    event_data: dict[str, Any]
    link_url: str | None = None


@dataclass(frozen=True, slots=True)
class WaitDescription:
    """What a run waits for; `action` completes the sentence "You are asked to …"."""

    wait_kind: Literal["connection", "question", "approval"]
    asked_action: str
    link_url: str
    expires_at: datetime


def compose_waiting_note(
    note_id: str,
    run_id: str,
    tool_name: str,
    tool_title: str,
    wait_description: WaitDescription,
    occurred_at: datetime,
) -> ChannelNote:
    """Compose the note that a run cannot go on without this person."""
    expiry_text = f"{wait_description.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    event_data = {
        "run_id": run_id,
        "tool": tool_name,
        "title": tool_title,
        "waits_for": wait_description.wait_kind,
        "url": wait_description.link_url,
        "expires_at": wait_description.expires_at.astimezone(UTC).isoformat(),
    }
    return ChannelNote(
        note_id,
        "waiting",
        _to_single_line(f"{tool_title} waits for you"),
        f"You are asked to {_to_single_line(wait_description.asked_action)}. The run {run_id} "
        "goes on by itself once you have.\n"
        f"The link works for you alone, signed in to Byline, until {expiry_text}.",
        occurred_at,
        event_data,
        wait_description.link_url,
    )


def compose_ended_note(
    note_id: str,
    run_id: str,
    tool_name: str,
    tool_title: str,
    run_outcome: RunOutcome,
    error_code: str | None,
    occurred_at: datetime,
) -> ChannelNote:
    """Compose the note that a run is over, without its result, which may hold anything."""
    failure_reason = FAILURE_REASONS.get(error_code or "")
    outcome_text = {
        "completed": "completed",
        "cancelled": "was cancelled",
        "failed": "failed" if failure_reason is None else f"failed: {failure_reason}",
    }[run_outcome]
    public_error_code = error_code if failure_reason is not None else None
    event_data = {
        "run_id": run_id,
        "tool": tool_name,
        "title": tool_title,
        "outcome": run_outcome,
        "error": public_error_code,
    }
    body_text = f"The run {run_id} {outcome_text}."
    return ChannelNote(
        note_id,
        "ended",
        _to_single_line(f"{tool_title} {outcome_text.partition(':')[0]}"),
        body_text,
        occurred_at,
        event_data,
    )


def compose_test_note(note_id: str, occurred_at: datetime) -> ChannelNote:
    """Compose the note with which somebody tries their channel."""
    body_text = "You, or somebody signed in as you, asked for this note to see whether it arrives."
    return ChannelNote(note_id, "test", "Byline can reach you", body_text, occurred_at, {})


def _to_single_line(text: str) -> str:
    """Return the text on one line, whatever characters a name or a title holds."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
