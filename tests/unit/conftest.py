from collections.abc import Iterator

import pytest
import pytest_socket


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """A unit test reaches no network, unless it is marked `enable_socket`; event loops keep their socket pair."""
    if not request.node.get_closest_marker("enable_socket"):
        pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()
