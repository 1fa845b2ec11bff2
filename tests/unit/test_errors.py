from collections.abc import Callable, Iterator

import pytest

from engine import errors
from engine.errors import (
    AccountMismatched,
    AnswerRequired,
    AuthorizationRequired,
    BylineError,
    PersonRequired,
    RateLimited,
    UpstreamFailed,
)
from engine.oauth.client import TokenRefused
from gateway.error_codes import CODES_BY_ERROR, find_mcp_code, to_http_status, to_mcp_code


def list_subclasses(kind: type[BylineError]) -> Iterator[type[BylineError]]:
    for child in kind.__subclasses__():
        yield child
        yield from list_subclasses(child)


def build_sample(kind: type[BylineError]) -> BylineError:
    builder_by_kind: dict[type[BylineError], Callable[[], BylineError]] = {
        AuthorizationRequired: lambda: AuthorizationRequired(
            waiter_id="w", request_id="r", connection_name="c", principal_id="p", expires_at=0.0
        ),
        PersonRequired: lambda: PersonRequired(
            "m", waiter_id="w", awaited_id="r", asked_principal_ids=["p"], expires_at=0.0
        ),
        AnswerRequired: lambda: AnswerRequired(
            waiter_id="w", question_id="q", role_name=None, asked_principal_ids=["p"], expires_at=0.0
        ),
        AccountMismatched: lambda: AccountMismatched("m", request_id="r"),
        RateLimited: lambda: RateLimited("m", retry_after=1.0),
        TokenRefused: lambda: TokenRefused("c", "invalid_grant"),
    }
    return builder_by_kind.get(kind, lambda: kind("m"))()


TREE = [kind for kind in list_subclasses(BylineError) if kind.__module__ == errors.__name__]
EVERY: list[type[BylineError]] = [BylineError, *list_subclasses(BylineError)]


def test_every_code_is_one_errors_alone() -> None:
    codes = [kind.code for kind in EVERY]

    assert len(set(codes)) == len(codes)
    assert all("code" in vars(kind) for kind in EVERY)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_a_row_that_says_how_each_edge_reports_it(kind: type[BylineError]) -> None:
    assert (set(kind.__mro__) - {BylineError}) & set(CODES_BY_ERROR)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_can_be_reported_at_each_edge(kind: type[BylineError]) -> None:
    assert 400 <= to_http_status(build_sample(kind)) < 600
    assert to_mcp_code(build_sample(kind)) in {None, -32602, -32603}


@pytest.mark.parametrize("kind", TREE)
def test_a_runs_error_has_the_mcp_code_of_the_error_with_its_code(kind: type[BylineError]) -> None:
    assert find_mcp_code(kind.code) == to_mcp_code(build_sample(kind))


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_says_something_and_has_details_that_cross_a_wire(kind: type[BylineError]) -> None:
    error = build_sample(kind)

    assert str(error)
    assert all(isinstance(value, str | float | int | None) for value in error.details.values())


def test_only_what_may_go_well_later_is_retried() -> None:
    assert {kind.code for kind in EVERY if kind.is_retryable} == {
        "key_service_unavailable",
        "rate_limited",
        "temporal_unreachable",
        "upstream_unavailable",
    }


def test_an_upstreams_failure_knows_its_status() -> None:
    assert UpstreamFailed("m", status_code=418).details == {"status": 418}
    assert RateLimited("m", retry_after=2.0).details == {"status": 429}
