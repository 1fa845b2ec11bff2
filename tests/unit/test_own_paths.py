import pytest

from gateway.sign_in.pages import keep_own_path


@pytest.mark.parametrize("path", ["/", "/connect/4f1c", "/authorize/4f1c?again=1&x=%2F#there"])
def test_a_path_of_this_site_is_followed_after_signing_in(path: str) -> None:
    assert keep_own_path(path) == path


@pytest.mark.parametrize(
    "address",
    [
        "",
        "connect",
        "https://evil.example/",
        "//evil.example/",
        "///evil.example/",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/connect\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "/\u2028/evil.example",
    ],
)
def test_an_address_of_another_site_is_not_followed(address: str) -> None:
    assert keep_own_path(address) == "/"
