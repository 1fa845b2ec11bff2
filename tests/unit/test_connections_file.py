from datetime import timedelta
from pathlib import Path

import pytest

from engine.errors import SettingsInvalid
from engine.sign_in.declarations import read_connections

WHOLE = """
connections:
  tracker:
    title: Acme Tracker
    system: jira
    mode: user
    base_url: https://tracker.example.com
    client_id: byline
    client_secret: {env: TRACKER_SECRET}
    wait_limit: P30D
    provider:
      issuer: ${ISSUER}
      authorization_endpoint: ${ISSUER}/authorize
      token_endpoint: ${ISSUER}/token
"""
ISSUER = {"ISSUER": "https://sign-in.example.com"}


def read_refusal(text: str, folder: Path, environment: dict[str, str]) -> str:
    """What is said of a connections file that cannot be used."""
    path = folder / "connections.yml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid) as error_info:
        read_connections(path, environment)
    return str(error_info.value)


def test_a_declaration_is_read_with_its_variables_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "connections.yml"
    path.write_text(WHOLE)
    (tracker,) = read_connections(path, ISSUER)

    assert tracker.name == "tracker"
    assert tracker.provider.issuer == "https://sign-in.example.com"
    assert tracker.wait_limit == timedelta(days=30)


def test_a_variable_that_nobody_set_is_named_with_its_place(tmp_path: Path) -> None:
    assert "connections.tracker.provider.issuer: the variable ISSUER is not set" in read_refusal(
        WHOLE, tmp_path, {}
    )


@pytest.mark.parametrize(
    ("instead_of", "replacement", "message"),
    [
        ("mode: user", "mode: everyone", "tracker.mode: Input should be 'user' or 'shared'"),
        ("title: Acme Tracker", "name_of_it: x", "tracker.title: Field required"),
        ("title: Acme Tracker", "name_of_it: x", "tracker.name_of_it: Extra inputs are not permitted"),
        ("client_secret: {env: TRACKER_SECRET}", "client_secret: open-to-all", "tracker.client_secret: "),
        ("{env: TRACKER_SECRET}", "{env: A, file: b}", "name one of env, file and vault"),
        ("wait_limit: P30D", "wait_limit: P3000D", "tracker.wait_limit: "),
        ("mode: user", "mode: user\n    sign_in: api_key", "sign_in api_key needs key: write it"),
        ("mode: user", "mode: user\n    sign_in: basic", "knows no provider, no client_id and no mcp"),
        ("mode: user", "mode: user\n    sign_in: jwt_bearer", "has no sign_in jwt_bearer: write api_key,"),
        ("mode: user", "mode: shared\n    sign_in: jwt_bearer", "sign_in jwt_bearer needs assertion"),
        ("client_id: byline", "scopes: []", "client_id is missing"),
        (
            "issuer: ${ISSUER}\n      authorization_endpoint: ${ISSUER}/authorize",
            "dpop: true",
            "people sign in at an",
        ),
        (
            "mode: user",
            "mode: user\n    sign_in: basic\n    key: {secret: {env: A}}",
            "sign_in basic knows no provider",
        ),
        (
            WHOLE[WHOLE.index("provider:") :],
            "sign_in: identity_assertion\n    mcp: {url: https://mcp.example.com/mcp}\n",
            "write provider.issuer: to it alone the company vouches for people",
        ),
        ("connections:", "connection:", "is not YAML with a mapping `connections:`"),
        ("connections:", "connections: [", "is not YAML with a mapping `connections:`"),
    ],
)
def test_a_mistake_in_a_declaration_is_named_with_its_place(
    instead_of: str, replacement: str, message: str, tmp_path: Path
) -> None:
    refusal_text = read_refusal(WHOLE.replace(instead_of, replacement), tmp_path, ISSUER)

    assert message in refusal_text
    assert "open-to-all" not in refusal_text


def test_a_missing_file_is_reported_with_the_setting_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="set BYLINE_CONNECTIONS_FILE"):
        read_connections(tmp_path / "nowhere.yml", {})
