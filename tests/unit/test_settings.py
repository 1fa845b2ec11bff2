from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from engine.settings import AssertionIssuerSettings, GatewaySettings, IssuerSettings, Settings


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_refusal(**environment: str) -> str:
    """What is said of settings that cannot be used."""
    with pytest.MonkeyPatch.context() as context:
        for name, value in environment.items():
            context.setenv(name, value)
        with pytest.raises(ValidationError) as error_info:
            Settings()
    return str(error_info.value)


def test_without_any_setting_everything_lies_here_and_nothing_is_open_to_others() -> None:
    settings = Settings()

    assert settings.database.url == "sqlite+aiosqlite:///.byline/byline.db"
    assert settings.gateway.host == "127.0.0.1"
    assert settings.public_url == "http://127.0.0.1:8080"
    assert not settings.gateway.demo_people
    assert settings.modules == ()


def test_every_setting_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BYLINE_DATABASE__URL": "postgresql+asyncpg://db/byline",
        "BYLINE_DATABASE__POOL_SIZE": "3",
        "BYLINE_TEMPORAL__API_KEY": "open-to-temporal",
        "BYLINE_TEMPORAL__TLS": "true",
        "BYLINE_GATEWAY__PUBLIC_URL": "https://byline.example/",
        "BYLINE_GATEWAY__ISSUER__ISSUER": "https://issuer.example",
        "BYLINE_GATEWAY__ISSUER__AUDIENCE": "byline",
        "BYLINE_GATEWAY__ISSUER__CLIENT_ID": "byline",
        "BYLINE_MODULES": '["our_tools"]',
        "BYLINE_CONNECTIONS_FILE": "connections.yml",
        "BYLINE_WAIT_LIMIT": "P3D",
        "BYLINE_LOG_LEVEL": "DEBUG",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings()

    assert settings.database.url == "postgresql+asyncpg://db/byline"
    assert settings.database.pool_size == 3
    assert settings.temporal.api_key == SecretStr("open-to-temporal")
    assert settings.temporal.tls
    assert settings.temporal.namespace == "byline"
    assert settings.public_url == "https://byline.example"
    assert settings.gateway.issuer == IssuerSettings(
        issuer="https://issuer.example", audience="byline", client_id="byline"
    )
    assert settings.modules == ("our_tools",)
    assert settings.connections_file == Path("connections.yml")
    assert settings.wait_limit == timedelta(days=3)


@pytest.mark.parametrize(("text", "seconds"), [("3600", 3600), ("0.5", 0.5), ("PT20S", 20), ("P1D", 86_400)])
def test_a_duration_is_written_as_seconds_or_as_iso_8601(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "GATEWAY__ACCESS_TOKEN_LIFE",
        "GATEWAY__ANSWER_WITHIN",
        "TEMPORAL__STICKY_TIMEOUT",
        "WAIT_LIMIT",
    ):
        monkeypatch.setenv(f"BYLINE_{name}", text)
    settings = Settings()

    assert settings.gateway.access_token_life == timedelta(seconds=seconds)
    assert settings.gateway.answer_within == timedelta(seconds=seconds)
    assert settings.temporal.sticky_timeout == timedelta(seconds=seconds)
    assert settings.wait_limit == timedelta(seconds=seconds)


def test_a_part_of_a_group_leaves_the_rest_of_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYLINE_GATEWAY__PORT", "9000")

    assert Settings().gateway == GatewaySettings(port=9000)


@pytest.mark.parametrize(
    "variable", ["BYLINE_GATEWAY__PORTS", "BYLINE_DATABASE__PASSWORD", "BYLINE_GATEWAY__ISSUER__SECRETS"]
)
def test_a_setting_that_there_is_not_is_refused(variable: str) -> None:
    assert "Extra inputs are not permitted" in read_refusal(**{variable: "x"})


def test_what_is_missing_of_a_group_is_reported() -> None:
    refusal_text = read_refusal(BYLINE_GATEWAY__ISSUER__ISSUER="https://issuer.example")

    assert "gateway.issuer.audience\n  Field required" in refusal_text
    assert "gateway.issuer.client_id\n  Field required" in refusal_text


@pytest.mark.parametrize(
    ("variable", "value", "expected_message"),
    [
        ("BYLINE_GATEWAY__PORT", "eighty", "gateway.port\n  Input should be a valid integer"),
        ("BYLINE_WAIT_LIMIT", "P3000D", "wait_limit\n  Input should be less than or equal to 366 days"),
        ("BYLINE_LOG_LEVEL", "LOUD", "log_level\n  Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("BYLINE_TEMPORAL__TLS", "perhaps", "temporal.tls\n  Input should be a valid boolean"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(variable: str, value: str, expected_message: str) -> None:
    assert expected_message in read_refusal(**{variable: value})


def test_without_a_keyring_nothing_starts() -> None:
    refusal_text = read_refusal(BYLINE_VAULT='{"keyring_file": null}')

    assert "set BYLINE_VAULT__KEYRING_FILE to a path, or BYLINE_VAULT__KEYRING" in refusal_text


def test_settings_do_not_change_and_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYLINE_TEMPORAL__API_KEY", "open-to-temporal")
    monkeypatch.setenv("BYLINE_VAULT__KEYRING", "open-to-the-vault")
    settings = Settings()

    assert "open-to" not in repr(settings)
    assert "open-to" not in settings.model_dump_json()
    with pytest.raises(ValidationError):
        settings.log_level = "DEBUG"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.gateway.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("alone", ["BYLINE_TEMPORAL__DEPLOYMENT_NAME", "BYLINE_TEMPORAL__BUILD_ID"])
def test_half_a_version_is_refused_with_both_names(alone: str) -> None:
    refusal_text = read_refusal(**{alone: "one"})

    assert "set both BYLINE_TEMPORAL__DEPLOYMENT_NAME and BYLINE_TEMPORAL__BUILD_ID" in refusal_text


def test_a_deployment_is_not_named_as_temporal_would_misread_it() -> None:
    assert "deployment_name" in read_refusal(
        BYLINE_TEMPORAL__DEPLOYMENT_NAME="a.b", BYLINE_TEMPORAL__BUILD_ID="1.2"
    )


def test_an_external_issuer_takes_assertions_itself() -> None:
    issuer = IssuerSettings(issuer="https://id.example", audience="x", client_id="byline")
    trusted_issuers = (AssertionIssuerSettings(issuer="https://id.example"),)

    with pytest.raises(ValidationError, match="ASSERTION_ISSUERS is for the built-in"):
        GatewaySettings(issuer=issuer, assertion_issuers=trusted_issuers)
