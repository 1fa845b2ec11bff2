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


async def lines(services: Services) -> list[dict[str, Any]]:
    return [line.event for line in await services.trail.find_lines() if line.kind == "attempt.refused"]


async def test_the_same_attempt_is_one_line_an_hour_which_tells_how_often_it_came(
    services: Services, alice: Principal
) -> None:
    clock = Clock()
    attempts = RefusedAttempts(services.trail, monotonic_clock=clock)
    for seconds in (0, 1, 3599, 3600, 3601, 7200):
        clock.now = seconds
        await attempts.record_refusal("link", "redirect_refused", "A link.", principal=alice)
    await attempts.record_refusal("other", "client_refused", "x" * 10_000)

    told = await lines(services)
    assert [(each["error"], each["message"]) for each in told[:-1]] == [
        ("redirect_refused", "A link."),
        ("redirect_refused", "A link. More of it since the last line: 2."),
        ("redirect_refused", "A link. More of it since the last line: 1."),
    ]
    assert told[0]["principal"]["name"] == alice.name
    assert len(told[-1]["message"]) == 500
    assert (await verify_trail(services.database, services.signing_keys)).problems == ()
