import gzip
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.responses import RedirectResponse, Response

from engine.errors import AddressRefused, RequestRejected, UpstreamUnavailable
from engine.outgoing.addresses import HostResolver, is_public_address, resolve_host
from engine.outgoing.client import OutgoingClient, OutgoingTransport, parse_retry_after
from engine.settings import OutgoingSettings
from tests.support.receivers import run_receiver

OPEN = OutgoingSettings(allow_http=True, allow_private=True)
HTTP = OutgoingSettings(allow_http=True)


def build_resolver(*answers: str) -> tuple[HostResolver, list[str]]:
    """A resolver whose name servers belong to somebody else: the first answer is the first address, and so on."""
    asked_hosts: list[str] = []

    async def answer(host: str, _port: int) -> list[str]:
        asked_hosts.append(host)
        return [answers[min(len(asked_hosts), len(answers)) - 1]]

    return answer, asked_hosts


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::f5ff:fffe",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ],
)
async def test_what_leads_into_a_private_network_is_refused_whoever_names_it(address: str) -> None:
    resolver, asked_hosts = build_resolver(address)

    assert not is_public_address(address)
    async with OutgoingClient(HTTP, resolver=resolver) as outgoing:
        with pytest.raises(AddressRefused):
            await outgoing.send_request("GET", "http://innocent.example/")
    assert asked_hosts == ["innocent.example"]


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:7f00:1]",
        "localhost",
        "0",
    ],
)
async def test_this_machine_is_refused_however_it_is_spelled(host: str) -> None:
    async with OutgoingClient(HTTP) as outgoing:
        with pytest.raises(AddressRefused):
            await outgoing.send_request("GET", f"http://{host}:8080/")


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def both(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "127.0.0.1"]

    async with OutgoingClient(HTTP, resolver=both) as outgoing:
        with pytest.raises(AddressRefused):
            await outgoing.send_request("GET", "http://innocent.example/")


@pytest.mark.parametrize(
    "url",
    [
        "http://public.example/",
        "ftp://public.example/",
        "file:///etc/passwd",
        "//public.example/",
        "public.example",
        "https://",
        "https://user:password@public.example/",
        "https://public.example/#part",
        f"https://public.example/{'x' * 2000}",
        "https://public.example:99999/",
        "https://-é.example/",
        "https://public.example/\ud800",
        "",
    ],
)
async def test_an_address_of_another_form_is_refused_before_any_name_is_resolved(url: str) -> None:
    resolver, asked_hosts = build_resolver("93.184.216.34")
    async with OutgoingClient(OutgoingSettings(), resolver=resolver) as outgoing:
        with pytest.raises(AddressRefused):
            await outgoing.send_request("GET", url)

    assert asked_hosts == []


@pytest.mark.enable_socket
async def test_a_host_that_nobody_knows_may_be_known_later() -> None:
    with pytest.raises(UpstreamUnavailable):
        await resolve_host("no..such..host", 443)


@pytest.mark.enable_socket
async def test_what_was_checked_is_what_is_called_whatever_the_name_means_a_moment_later() -> None:
    resolver, asked_hosts = build_resolver("127.0.0.1", "192.0.2.1")
    async with run_receiver() as receiving, OutgoingClient(OPEN, resolver=resolver) as outgoing:
        url = f"http://receiver.example:{receiving.port}/path?and=query"
        answer = await outgoing.send_request("POST", url, content=b"body", headers={"X-Own": "yes"})

    (post,) = receiving.posts
    assert (answer.status_code, answer.body) == (200, b"ok")
    assert (post.path, post.body, post.headers["x-own"]) == ("/path", b"body", "yes")
    assert post.headers["host"] == f"receiver.example:{receiving.port}"
    assert asked_hosts == ["receiver.example"]


@pytest.mark.enable_socket
async def test_a_connection_that_was_checked_is_kept_open_for_its_host_alone() -> None:
    resolver, asked_hosts = build_resolver("127.0.0.1")
    async with run_receiver() as receiving, OutgoingClient(OPEN, resolver=resolver) as outgoing:
        for host in ("one.example", "one.example", "two.example", "one.example"):
            await outgoing.send_request("GET", f"http://{host}:{receiving.port}/")

    assert asked_hosts == ["one.example", "two.example"]


@pytest.mark.enable_socket
async def test_an_address_that_does_not_answer_is_passed_over() -> None:
    async def two(_host: str, _port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with run_receiver() as receiving, OutgoingClient(OPEN, resolver=two) as outgoing:
        answer = await outgoing.send_request("GET", f"http://receiver.example:{receiving.port}/")

    assert answer.status_code == 200


@pytest.mark.enable_socket
async def test_a_redirect_is_not_followed() -> None:
    async with run_receiver() as private:
        away = RedirectResponse(f"http://127.0.0.1:{private.port}/latest/meta-data", 307)
        async with run_receiver([away]) as receiving, OutgoingClient(OPEN) as outgoing:
            with pytest.raises(RequestRejected, match="redirect"):
                await outgoing.send_request("POST", f"http://127.0.0.1:{receiving.port}/")

    assert private.posts == []


@pytest.mark.enable_socket
async def test_an_answer_that_is_too_large_is_not_read_to_its_end() -> None:
    async with run_receiver([Response("x" * 5000)]) as receiving, OutgoingClient(OPEN) as outgoing:
        with pytest.raises(RequestRejected, match="more than 1,000 bytes"):
            await outgoing.send_request("GET", f"http://127.0.0.1:{receiving.port}/", max_bytes=1000)


@pytest.mark.enable_socket
async def test_an_answer_is_not_unpacked_beyond_what_is_read_for_whichever_library_asked() -> None:
    packed_body = gzip.compress(bytes(50_000_000))
    answers = [
        Response(packed_body, headers={"Content-Encoding": "gzip"}),
        Response(gzip.compress(b"ok"), headers={"Content-Encoding": "gzip"}),
    ]
    async with (
        run_receiver(answers) as receiving,
        OutgoingClient(OPEN) as outgoing,
        httpx2.AsyncClient(transport=OutgoingTransport(outgoing)) as library,
    ):
        url = f"http://127.0.0.1:{receiving.port}/"
        with pytest.raises(RequestRejected, match="more than 1,000,000 bytes"):
            await library.get(url)
        answer = await library.get(url)

    assert len(packed_body) < 50_000
    assert answer.content == b"ok"


@pytest.mark.enable_socket
async def test_what_was_packed_more_than_once_is_not_unpacked_since_that_may_never_end() -> None:
    packed_response = Response(
        gzip.compress(gzip.compress(b"ok")), headers={"Content-Encoding": "gzip, gzip"}
    )
    async with (
        run_receiver([packed_response]) as receiving,
        OutgoingClient(OPEN) as outgoing,
        httpx2.AsyncClient(transport=OutgoingTransport(outgoing)) as library,
    ):
        with pytest.raises(UpstreamUnavailable, match="DecodingError"):
            await library.get(f"http://127.0.0.1:{receiving.port}/")


@pytest.mark.enable_socket
async def test_a_cookie_of_one_answer_is_not_sent_with_the_next_request() -> None:
    baker = Response("ok", headers={"Set-Cookie": "session=1; Path=/"})
    async with run_receiver([baker]) as receiving, OutgoingClient(OPEN) as outgoing:
        for _ in range(2):
            await outgoing.send_request("GET", f"http://127.0.0.1:{receiving.port}/")

    assert [post.headers.get("cookie") for post in receiving.posts] == [None, None]


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a certificate for a host, with its key, in one file."""

    def make(host: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        now = datetime.now(UTC)
        certificate_pair = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        encoding = serialization.Encoding.PEM
        secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = tmp_path / f"{host}.pem"
        path.write_bytes(secret + certificate_pair.public_bytes(encoding))
        return path

    return make


@pytest.mark.enable_socket
async def test_the_certificate_has_to_be_the_named_hosts_although_an_address_is_called(
    certificate: Callable[[str], Path],
) -> None:
    own = certificate("receiver.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own)
    trust = ssl.create_default_context(cafile=str(own))
    resolver, _ = build_resolver("127.0.0.1")
    private = OutgoingSettings(allow_private=True)
    async with (
        run_receiver(tls=tls) as receiving,
        OutgoingClient(private, resolver=resolver, tls_context=trust) as outgoing,
    ):
        answer = await outgoing.send_request("GET", f"https://receiver.example:{receiving.port}/")
        with pytest.raises(UpstreamUnavailable):
            await outgoing.send_request("GET", f"https://other.example:{receiving.port}/")

    assert answer.status_code == 200
    assert [post.headers["host"] for post in receiving.posts] == [f"receiver.example:{receiving.port}"]


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("999999999", 86_400.0), ("-1", None), ("soon", None), (None, None)]
)
def test_a_wait_that_is_asked_for_is_kept_within_a_day(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after({} if value is None else {"Retry-After": value}) == seconds


def test_a_wait_may_be_given_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)

    assert 60 < (parse_retry_after({"Retry-After": later}) or 0) <= 90
