"""What `byline` reads of its surroundings to call a gateway: which one, and as whom where nobody can sign in."""

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_GATEWAY: Final = "http://127.0.0.1:8080"
"""Where `byline dev` and a gateway without settings listen."""


def origin(url: str) -> str:
    """A gateway's address as it is kept and compared; raises ValueError for what is none."""
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise ValueError("write the gateway's address, such as https://byline.example.com")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("write the gateway's address alone, without a query or a password")
    return f"{parts.scheme}://{parts.netloc}".lower()


class ClientSettings(BaseSettings):
    """`BYLINE_URL`, `BYLINE_TOKEN` and `BYLINE_CLIENT_ID`; none of them is needed after `byline login`."""

    model_config = SettingsConfigDict(
        env_prefix="BYLINE_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    url: Annotated[str, AfterValidator(origin)] | None = None
    token: SecretStr | None = None
    client_id: str | None = None
