from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.connections.connection import Connection, SecretReference
from engine.connections.secret_reader import SecretReader
from engine.errors import ConnectionMisconfigured
from engine.sign_in.declarations import read_connections

ROOT = Path(__file__).parents[2]
ADDRESSES = {f"{name}_URL": f"https://{name.lower()}.example" for name in ("CRM", "BILLING", "SUPPORT")}


def read_declared_connections() -> dict[str, Connection]:
    connections = read_connections(ROOT / "examples/sandbox/connections.yml", ADDRESSES)
    return {connection.name: connection for connection in connections}


def test_the_sandbox_declares_its_three_systems_each_reached_as_the_person_who_asked() -> None:
    assert {
        (name, connection.system, connection.mode) for name, connection in read_declared_connections().items()
    } == {
        ("crm", "salesforce", "user"),
        ("billing", "stripe", "user"),
        ("support", "zendesk", "user"),
    }


def test_a_declaration_survives_its_way_through_the_database() -> None:
    for connection in read_declared_connections().values():
        assert Connection.model_validate(connection.model_dump(mode="json")) == connection


def test_a_connection_of_people_is_held_by_each_and_a_shared_one_by_the_service() -> None:
    crm = read_declared_connections()["crm"]

    assert crm.resolve_holder("p-1") == "p-1"
    assert crm.model_copy(update={"mode": "shared"}).resolve_holder("p-1") == "shared"


def test_a_secret_is_read_from_where_the_declaration_says(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("of-the-file\n")

    assert (
        SecretReader({"CRM_SECRET": "of-the-environment"}).read_secret(
            "crm", SecretReference(env="CRM_SECRET")
        )
        == "of-the-environment"
    )
    assert SecretReader({}).read_secret("crm", SecretReference(file=file)) == "of-the-file"


@pytest.mark.parametrize("empty", [{}, {"CRM_SECRET": ""}])
def test_a_missing_secret_is_reported_by_its_place(empty: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConnectionMisconfigured, match="set CRM_SECRET"):
        SecretReader(empty).read_secret("crm", SecretReference(env="CRM_SECRET"))
    with pytest.raises(ConnectionMisconfigured, match=f"write it into {tmp_path / 'nowhere'}"):
        SecretReader(empty).read_secret("crm", SecretReference(file=tmp_path / "nowhere"))


def test_a_secret_has_one_place() -> None:
    with pytest.raises(ValidationError, match="name one of env, file and vault"):
        SecretReference()
    with pytest.raises(ValidationError, match="name one of env, file and vault"):
        SecretReference(env="CRM_SECRET", file=Path("secret"))
    with pytest.raises(ValidationError, match="name one of env, file and vault"):
        SecretReference(env="CRM_SECRET", vault=True)


def test_a_secret_cannot_be_written_into_the_declaration() -> None:
    crm = read_declared_connections()["crm"].model_dump(mode="json")
    for inline in ("open-to-all", {"value": "open-to-all"}):
        with pytest.raises(ValidationError):
            Connection.model_validate({**crm, "client_secret": inline})
