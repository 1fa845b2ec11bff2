"""Reads the secrets that connections refer to, from the environment, a file or the vault."""

from collections.abc import Mapping

from engine.connections.client_secrets import ClientSecrets
from engine.connections.connection import SecretReference
from engine.errors import ConnectionMisconfigured


class SecretReader:
    """Reads secrets where their references say, without waiting: the catalogue has opened those of the vault."""

    def __init__(self, environment: Mapping[str, str], client_secrets: ClientSecrets | None = None) -> None:
        self._environment = environment
        self._client_secrets = client_secrets

    def read_secret(self, connection_name: str, secret_reference: SecretReference) -> str:
        """Return the secret of this connection.

        Raises ConnectionMisconfigured if there is none, or the error that kept the vault from opening it.
        """
        secret_text, remedy = self._find_secret(connection_name, secret_reference)
        if not secret_text:
            raise ConnectionMisconfigured(f"The client secret is not there: {remedy}.")
        return secret_text

    def _find_secret(self, connection_name: str, secret_reference: SecretReference) -> tuple[str, str]:
        """Return the secret, which is empty if there is none, and what to do in that case."""
        if secret_reference.env is not None:
            return self._environment.get(secret_reference.env, ""), f"set {secret_reference.env}"
        secret_path = secret_reference.file
        if secret_path is not None:
            file_text = secret_path.read_text().strip() if secret_path.is_file() else ""
            return file_text, f"write it into {secret_path}"
        vault_secret = (
            "" if self._client_secrets is None else self._client_secrets.get_opened_secret(connection_name)
        )
        return vault_secret, "set it with `byline connections secret set`"
