"""The metadata that issuers publish: where it lies, what Byline reads of it, and whose it is (RFC 8414).

The command line reads its gateway's with the models and checks of the MCP SDK, which the engine may not import.
"""

from typing import Final, TypeVar

from pydantic import BaseModel, HttpUrl

_OPENID_PATH: Final = "/.well-known/openid-configuration"
_OAUTH_PATH: Final = "/.well-known/oauth-authorization-server"


class IssuerMetadata(BaseModel):
    """The members that Byline reads of every issuer (RFC 8414 section 2)."""

    issuer: str
    authorization_endpoint: HttpUrl
    token_endpoint: HttpUrl
    userinfo_endpoint: HttpUrl | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class OpenIdMetadata(IssuerMetadata):
    """What Byline also reads of an issuer that signs people in to Byline (OpenID Connect Discovery 1.0 section 3)."""

    jwks_uri: HttpUrl


class AuthorizationServerMetadata(IssuerMetadata):
    """What Byline also reads of an issuer that it is an OAuth client of."""

    pushed_authorization_request_endpoint: HttpUrl | None = None
    revocation_endpoint: HttpUrl | None = None
    device_authorization_endpoint: HttpUrl | None = None
    registration_endpoint: HttpUrl | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    client_id_metadata_document_supported: bool = False
    scopes_supported: tuple[str, ...] = ()


Metadata = TypeVar("Metadata", bound=IssuerMetadata)


class IssuerMismatched(ValueError):
    """The metadata is that of another issuer: `issuer`. Anybody can publish such (RFC 8414 section 3.3)."""

    def __init__(self, issuer: str) -> None:
        super().__init__(f"The metadata is that of {issuer}.")
        self.issuer = issuer


def build_openid_url(issuer: str) -> str:
    """Return the URL of an issuer's OpenID Connect metadata (OpenID Connect Discovery 1.0 section 4)."""
    return f"{issuer.rstrip('/')}{_OPENID_PATH}"


def list_metadata_urls(issuer: str) -> list[str]:
    """Return the URLs of an issuer's possible metadata (OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3)."""
    issuer_path = (HttpUrl(issuer).path or "").rstrip("/")
    origin = issuer.rstrip("/").removesuffix(issuer_path)
    metadata_urls = [
        build_openid_url(issuer),
        f"{origin}{_OAUTH_PATH}{issuer_path}",
        f"{origin}{_OPENID_PATH}{issuer_path}",
    ]
    return list(dict.fromkeys(metadata_urls))


def validate_metadata(
    metadata_type: type[Metadata], issuer: str, document: object, *, is_issuer_discovered: bool = False
) -> Metadata:
    """Return an issuer's metadata. Its `issuer` must equal this one, but for a slash if another service named it.

    Raises ValidationError for a document that is no metadata of this type, and IssuerMismatched.
    """
    metadata = metadata_type.model_validate(document)
    if metadata.issuer != issuer and not (is_issuer_discovered and _is_same_origin(metadata.issuer, issuer)):
        raise IssuerMismatched(metadata.issuer)
    return metadata


def _is_same_origin(issuer: str, other_issuer: str) -> bool:
    """Return whether two issuers without a path are equal apart from a trailing slash.

    Libraries add that slash when they serialise a URL.
    """
    return issuer.rstrip("/") == other_issuer.rstrip("/") and issuer.count("/") <= 3
