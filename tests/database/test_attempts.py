from typing import Any

from engine.audit.attempts import RefusedAttempts
from engine.audit.verify import verify_trail
from engine.identity.model import Principal
from engine.services import Services


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def list_lines(services: Services) -> list[dict[str, Any]]:
    return [line.event for line in await services.trail.find_lines() if line.kind == "attempt.refused"]


async def test_the_same_attempt_is_one_line_an_hour_with_the_number_of_attempts(
    services: Services, alice: Principal
) -> None:
    clock = Clock()
    attempts = RefusedAttempts(services.trail, monotonic_clock=clock)
    for seconds in (0, 1, 3599, 3600, 3601, 7200):
        clock.now = seconds
        await attempts.record_refusal("link", "redirect_refused", "A link.", principal=alice)
    await attempts.record_refusal("other", "client_refused", "x" * 10_000)

    attempt_lines = await list_lines(services)
    assert [(attempt_line["error"], attempt_line["message"]) for attempt_line in attempt_lines[:-1]] == [
        ("redirect_refused", "A link."),
        ("redirect_refused", "A link. More of it since the last line: 2."),
        ("redirect_refused", "A link. More of it since the last line: 1."),
    ]
    assert attempt_lines[0]["principal"]["name"] == alice.name
    assert len(attempt_lines[-1]["message"]) == 500
    assert (await verify_trail(services.database, services.signing_keys)).problems == ()
