import json
import re
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.connections.connection import Connection
from engine.connections.known_providers import KnownProvider, list_known_providers, load_known_provider
from engine.errors import SettingsInvalid
from engine.oauth.token_response import find_account
from engine.sign_in.declarations import CONNECTIONS_ADAPTER, read_connections

PROVIDERS = {name: load_known_provider(name) for name in list_known_providers()}
WITH_VARIABLES = {
    name: provider_entry for name, provider_entry in PROVIDERS.items() if provider_entry.variables
}
PLACE = re.compile(r"\{(\w+)\}")
ADDRESSES = re.compile(r"(_endpoint|issuer)$")
EVERY_ONE_OF_THEM = pytest.mark.parametrize("known_provider", PROVIDERS.values(), ids=PROVIDERS)


def examples(known_provider: KnownProvider) -> dict[str, str]:
    return {name: variable.example for name, variable in known_provider.variables.items()}


def declare_connection(provider: dict[str, Any], **more: object) -> Connection:
    body = {"name": "c", "title": "C", "system": "c", "mode": "user", "client_id": "byline"}
    (declared_connection,) = CONNECTIONS_ADAPTER.validate_python(
        {"odd": {**body, "provider": provider, **more}}
    ).values()
    return declared_connection


def addresses(base_url: object, provider: dict[str, Any]) -> list[str]:
    found_addresses = [str(value) for key, value in provider.items() if ADDRESSES.search(key)]
    return [*found_addresses, *([str(base_url)] if base_url else [])]


def test_the_catalogue_knows_many_systems_each_by_a_title_of_its_own() -> None:
    assert len(PROVIDERS) >= 60
    assert len({provider_entry.title for provider_entry in PROVIDERS.values()}) == len(PROVIDERS)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in PROVIDERS)


@EVERY_ONE_OF_THEM
def test_a_known_provider_makes_a_whole_connection(known_provider: KnownProvider) -> None:
    name = next(name for name, provider_entry in PROVIDERS.items() if provider_entry is known_provider)
    declaration = {"known": name, "variables": examples(known_provider)}
    people = "authorization_endpoint" in known_provider.provider or "issuer" in known_provider.provider
    connection = declare_connection(
        declaration,
        mode="user" if people else "shared",
        **({} if known_provider.base_url else {"base_url": "https://api.example.com"}),
    )

    assert Connection.model_validate(connection.model_dump(mode="json")) == connection


@EVERY_ONE_OF_THEM
def test_a_known_provider_is_called_by_tls_alone_and_names_its_sources(
    known_provider: KnownProvider,
) -> None:
    base_url, provider = known_provider.fill_variables(examples(known_provider))

    assert all(source.scheme == "https" for source in known_provider.sources)
    assert all(re.fullmatch(r"https://[^{}]+", address) for address in addresses(base_url, provider))


@EVERY_ONE_OF_THEM
def test_where_an_account_is_read_can_be_read(known_provider: KnownProvider) -> None:
    read_from = known_provider.provider.get("account_from", "userinfo")
    claim = known_provider.provider.get("account_claim", "")

    assert ("userinfo_endpoint" in known_provider.provider) <= (read_from == "userinfo")
    assert read_from != "id_token" or "openid" in known_provider.provider["added_scopes"]
    assert claim == "" or re.fullmatch(r"\w+|(/\w+)+", claim)


@EVERY_ONE_OF_THEM
def test_an_issuer_that_may_name_itself_is_not_required_to(known_provider: KnownProvider) -> None:
    assert "issuer" not in known_provider.provider or known_provider.provider["iss_required"] is False


def draw_near_values(pattern: str) -> st.SearchStrategy[str]:
    """Texts that fit a pattern, texts that do not quite, and any others."""
    fits = st.from_regex(pattern, fullmatch=True)
    return fits | st.tuples(fits, st.text(max_size=3), fits).map("".join) | st.text(max_size=20)


@pytest.mark.parametrize("name", WITH_VARIABLES)
@settings(deadline=None)
@given(data=st.data())
def test_no_value_of_a_variable_leads_outside_the_providers_own_domain(
    name: str, data: st.DataObject
) -> None:
    known_provider = WITH_VARIABLES[name]
    values = {
        variable_name: data.draw(draw_near_values(variable.pattern))
        for variable_name, variable in known_provider.variables.items()
    }
    try:
        base_url, provider = known_provider.fill_variables(values)
    except ValueError:
        return
    for template, address in zip(
        addresses(known_provider.base_url, known_provider.provider),
        addresses(base_url, provider),
        strict=True,
    ):
        template_parts, address_parts = urlsplit(template), urlsplit(address)
        before, _, after = template_parts.netloc.partition("{")
        _, _, own_domain = after.partition("}")
        for variable_name, value in values.items():
            own_domain = own_domain.replace(f"{{{variable_name}}}", value)

        assert (address_parts.scheme, address_parts.query, address_parts.fragment) == ("https", "", "")
        assert address_parts.netloc.startswith(before)
        assert address_parts.netloc.endswith(own_domain)
        assert re.fullmatch(r"[A-Za-z0-9.-]+", address_parts.netloc)
        assert ".." not in address_parts.netloc
        assert address_parts.path.count("/") == template_parts.path.count("/")


@pytest.mark.parametrize("known_provider", WITH_VARIABLES.values(), ids=WITH_VARIABLES)
def test_a_variable_that_has_part_in_a_domain_has_values_that_can_be_counted(
    known_provider: KnownProvider,
) -> None:
    hosts = [
        urlsplit(address_match).netloc
        for address_match in addresses(known_provider.base_url, known_provider.provider)
    ]
    variable_places = [
        (host, address_match[1], address_match.start(), address_match.end())
        for host in hosts
        for address_match in PLACE.finditer(host)
    ]
    of_a_domain = {
        name for host, name, start, end in variable_places if end == len(host) or "}" in host[:start]
    }
    countable = re.compile(r"\(([a-z]|\\\.|\|)+\)")

    assert all(countable.fullmatch(known_provider.variables[name].pattern) for name in of_a_domain)


def test_what_a_connection_says_itself_goes_before_the_catalogue() -> None:
    own = declare_connection(
        {
            "known": "gitlab",
            "token_endpoint": "https://git.example.com/oauth/token",
            "added_scopes": ["read_user"],
        },
        base_url="https://git.example.com/api/v4",
    )

    assert str(own.base_url) == "https://git.example.com/api/v4"
    assert str(own.provider.token_endpoint) == "https://git.example.com/oauth/token"
    assert str(own.provider.authorization_endpoint) == "https://gitlab.com/oauth/authorize"
    assert own.provider.added_scopes == ("read_user",)


def test_a_connection_is_kept_with_all_that_its_known_provider_said() -> None:
    kept_provider = declare_connection({"known": "slack"}).model_dump(mode="json")["provider"]

    assert not {"known", "variables"} & kept_provider.keys()
    assert kept_provider["token_response"]["access_token"] == "/authed_user/access_token"


@pytest.mark.parametrize(
    ("provider", "expected_message"),
    [
        ({"known": "saleforce"}, "no provider is known as 'saleforce': perhaps salesforce"),
        ({"known": "../../settings"}, "no provider is known as '../../settings': declare its endpoints"),
        ({"known": "zendesk"}, "Zendesk takes the variables {subdomain: what stands before .zendesk.com}"),
        ({"known": "zendesk", "variables": {"sub": "acme"}}, "Zendesk takes the variables {subdomain"),
        ({"known": "github", "variables": {"host": "acme"}}, "GitHub takes the variables {}"),
        (
            {"known": "zendesk", "variables": {"subdomain": "evil.example/"}},
            "subdomain does not fit: what stands before .zendesk.com, like acme",
        ),
        ({"known": "zendesk", "variables": ["acme"]}, "a mapping of name to value"),
        ({"known": "github", "endpoint": "x"}, "Extra inputs are not permitted"),
        ({"known": "zuora", "variables": {"host": "rest"}}, "declare the connection as shared"),
    ],
)
def test_a_mistake_about_a_known_provider_is_reported(
    provider: dict[str, Any], expected_message: str
) -> None:
    with pytest.raises(ValidationError) as error_info:
        declare_connection(provider, base_url="https://api.example.com")

    assert expected_message in str(error_info.value)


def test_a_mistake_about_a_known_provider_is_reported_with_its_place_in_the_file(tmp_path: Path) -> None:
    body = {
        "title": "T",
        "system": "t",
        "mode": "user",
        "client_id": "byline",
        "provider": {"known": "zendsk"},
    }
    file = tmp_path / "connections.yml"
    file.write_text(json.dumps({"connections": {"support": body}}))

    with pytest.raises(
        SettingsInvalid, match=r"support: .*no provider is known as 'zendsk': perhaps zendesk"
    ):
        read_connections(file, {})


def build_row(name: str, known_provider: KnownProvider) -> str:
    """How the reference tells a provider."""
    variables = ", ".join(
        f"`{variable_name}`, like `{variable.example}`"
        for variable_name, variable in known_provider.variables.items()
    )
    people = "authorization_endpoint" in known_provider.provider or "issuer" in known_provider.provider
    facts = " ".join(f"[{place}]({url})" for place, url in enumerate(known_provider.sources, 1))
    cells = (
        f"`{name}`",
        known_provider.title,
        variables or "–",
        "people" if people else "shared",
        known_provider.notes,
        facts,
    )
    return f"| {' | '.join(cells)} |"


def test_the_reference_lists_every_known_provider_as_its_file_does() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/providers.md").read_text()

    assert [line for line in page.splitlines() if line.startswith("| `")] == [
        build_row(name, known_provider) for name, known_provider in PROVIDERS.items()
    ]


def test_an_id_token_that_is_nested_without_end_names_no_account() -> None:
    deep = urlsafe_b64encode(b'{"sub":' + b"[" * 100_000 + b"]" * 100_000 + b"}").decode().rstrip("=")
    provider = declare_connection(
        {
            "authorization_endpoint": "https://id.example.com/authorize",
            "token_endpoint": "https://id.example.com/token",
            "account_from": "id_token",
        },
        base_url="https://api.example.com",
    ).provider

    assert find_account(provider, {"id_token": f"e30.{deep}.x"}) == ""
