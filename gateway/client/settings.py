"""The settings that `byline` reads from the environment to call a gateway: its address, a token and a client id."""

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_GATEWAY_URL: Final = "http://127.0.0.1:8080"
"""The address at which `byline dev` and a gateway without settings listen."""


def parse_origin(gateway_url: str) -> str:
    """Return a gateway's address in the form that is stored and compared. Raises ValueError if it is not an origin."""
    url_parts = urlsplit(gateway_url.strip())
    if url_parts.scheme not in {"http", "https"} or not url_parts.hostname or url_parts.path.strip("/"):
        raise ValueError("write the gateway's address, such as https://byline.example.com")
    if url_parts.query or url_parts.fragment or url_parts.username or url_parts.password:
        raise ValueError("write the gateway's address alone, without a query or a password")
    return f"{url_parts.scheme}://{url_parts.netloc}".lower()


class ClientSettings(BaseSettings):
    """`BYLINE_URL`, `BYLINE_TOKEN` and `BYLINE_CLIENT_ID`. None of them is needed after `byline login`."""

    model_config = SettingsConfigDict(
        env_prefix="BYLINE_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    url: Annotated[str, AfterValidator(parse_origin)] | None = None
    token: SecretStr | None = None
    client_id: str | None = None
