from gateway.mcp.exchange.progress_cursor import ProgressCursor
from gateway.mcp.exchange.request_state import RequestState

SEALED_BY_AN_EARLIER_RELEASE = (
    '{"run":"refund-1","told":{"sign-in":"request-1"},"round":3,'
    '"heard":{"at":12.5,"number":4.0,"counts":true}}'
)


def test_a_state_that_an_earlier_release_sealed_is_read_and_written_as_it_was() -> None:
    request_state = RequestState.model_validate_json(SEALED_BY_AN_EARLIER_RELEASE)

    assert request_state == RequestState(
        run_id="refund-1",
        announced_waits={"sign-in": "request-1"},
        round_number=3,
        progress_cursor=ProgressCursor(last_step_epoch_seconds=12.5, last_number=4.0, is_step_count=True),
    )
    assert request_state.to_text() == SEALED_BY_AN_EARLIER_RELEASE


def test_a_new_state_has_announced_and_reported_nothing() -> None:
    assert RequestState(run_id="refund-1").to_text() == (
        '{"run":"refund-1","told":{},"round":0,"heard":{"at":0.0,"number":null,"counts":false}}'
    )


def test_progress_numbers_grow_whatever_a_tool_reports() -> None:
    cursor = ProgressCursor()
    numbers = [cursor.advance_number(number) for number in (None, None, 10.0, None, 5.0, 20.0)]

    assert numbers[:3] == [1.0, 2.0, 10.0]
    assert numbers[-1] == 20.0
    assert numbers == sorted(set(numbers))
