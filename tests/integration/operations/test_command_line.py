import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engine.settings import IssuerSettings
from examples.browser import Browser, Page
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.support.api_server import ApiServer, serve_api
from tests.support.foreign.oidc_provider import RegisteredClient, oidc_provider
from tests.support.platform import CONTOSO, DEADLINE, NORTHWIND, Platform, wait_until
from tests.support.sandbox_systems import CALLBACK

PROGRAM = Path(sys.executable).with_name("byline")
PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}
ACCOUNT = f"account_id={NORTHWIND}"
READ = ("call", "read_once", "--arg", ACCOUNT)


@dataclass(frozen=True)
class TerminalResult:
    """What became of a command."""

    code: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)


@dataclass
class StartedCommand:
    """A command that runs; `said` is what it told so far."""

    process: asyncio.subprocess.Process
    output: str = ""

    async def link(self, path: str) -> str:
        """The next address with this path that it prints, once it does."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE):
            while line := (await self.process.stderr.readline()).decode():
                self.output += line
                if match := re.search(rf"https?://\S+{path}\S*", line):
                    return match[0]
        raise AssertionError(f"it ended without a link: {self.output}")

    async def end(self) -> TerminalResult:
        """How it ends."""
        async with asyncio.timeout(DEADLINE):
            out, err = await self.process.communicate()
        return TerminalResult(self.process.returncode, out.decode(), self.output + (err or b"").decode())


@dataclass(frozen=True)
class Terminal:
    """Somebody's terminal, on a computer with nothing but a home folder, and their browser."""

    api_server: ApiServer
    platform: Platform
    home: Path
    username: str = "alice"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What commands left in the home folder."""
        return [path for path in self.home.rglob("*") if path.is_file()]

    @property
    def configuration(self) -> dict[str, Any]:
        """What is kept of the sign-in."""
        (file,) = [path for path in self.files if path.suffix == ".json"]
        configuration: dict[str, Any] = json.loads(file.read_text())
        return configuration

    def write_configuration(self, **changes: object) -> None:
        """Have something else kept of the tokens."""
        (file,) = [path for path in self.files if path.suffix == ".json"]
        configuration = json.loads(file.read_text())
        file.write_text(json.dumps({**configuration, "sign_in": {**configuration["sign_in"], **changes}}))

    @asynccontextmanager
    async def start_command(
        self, *arguments: str, tty: int | None = None, **environment: str
    ) -> AsyncIterator[StartedCommand]:
        """Begin a command, at a terminal where there is one."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
        own = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config"), "COLUMNS": "200"}
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.home,
            env={**foreign, **own, "BYLINE_URL": self.api_server.url, **self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL if tty is None else tty,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if tty is None else tty,
        )
        try:
            yield StartedCommand(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def __call__(self, *arguments: str, **environment: str) -> TerminalResult:
        """Run a command to its end."""
        async with self.start_command(*arguments, tty=None, **environment) as command:
            return await command.end()

    async def run_successfully(self, *arguments: str, **environment: str) -> TerminalResult:
        """Run a command that goes well."""
        result = await self(*arguments, **environment)
        assert result.code == 0, result
        return result

    @asynccontextmanager
    async def open_link(self, link: str) -> AsyncIterator[Page]:
        """The person's browser at a link of the gateway, signed in."""
        async with Browser(stop_at=CALLBACK) as browser:
            page = await browser.open(link)
            if "/sign-in" in page.url:
                page = await page.form(
                    submit="Sign in", username=self.username, password=PASSWORDS[self.username]
                )
            yield page

    async def log_in(self, *, button: str = "Allow") -> TerminalResult:
        """Sign in as a person does: read the link, answer in the browser."""
        async with self.start_command("login", "--no-open") as command:
            async with self.open_link(await command.link("/authorize")) as page:
                answer_page = await page.form(submit=button)
                assert "terminal" in answer_page.text, answer_page
            return await command.end()

    async def consent_in_browser(self, link: str, system: str = "crm") -> Page:
        """Open the link of a run, and let Byline use the person's account at this system."""
        account = self.platform.systems[system].find_account(self.username)
        async with self.open_link(link) as consent_page:
            page = await consent_page.form(submit="Continue")
            page = await page.form(submit="Sign in", username=account, password=f"{self.username}-{system}")
            page = await page.form(submit="Allow")
            # The sandbox knows one address to come back to, which is not this gateway's.
            return await page.browser.open(
                page.url.replace(CALLBACK, f"{self.api_server.url}/oauth/callback")
            )


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        await BuiltInPeople(api_server.services.database).add_demo_people()
        yield api_server


@pytest.fixture
def stranger(api_server: ApiServer, platform: Platform, tmp_path: Path) -> Terminal:
    """Somebody who has not signed in."""
    home = tmp_path / "home"
    home.mkdir()
    return Terminal(api_server, platform, home)


@pytest.fixture
async def alice(stranger: Terminal) -> Terminal:
    result = await stranger.log_in()
    assert result.code == 0, result
    return stranger


async def test_signing_in_keeps_tokens_that_only_their_owner_can_read(stranger: Terminal) -> None:
    result = await stranger.log_in()

    assert (result.code, result.out) == (0, f"You are Alice Liddell at {stranger.api_server.url}.\n")
    assert stranger.files
    assert {stat.S_IMODE(path.stat().st_mode) for path in stranger.files if path.stat().st_size} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in stranger.files} == {0o700}
    me = (await stranger.run_successfully("whoami", "--json")).json
    assert me["principal"]["name"] == "Alice Liddell"
    assert me["actor"]["name"] == "Byline command line"
    assert me["gateway"] == stranger.api_server.url


async def test_a_computer_registers_once_however_often_somebody_signs_in(alice: Terminal) -> None:
    before = alice.configuration
    await alice.log_in()

    assert alice.configuration["registration"] == before["registration"]
    assert alice.configuration["sign_in"]["refresh_token"] != before["sign_in"]["refresh_token"]


async def test_later_commands_talk_to_the_gateway_that_was_signed_in_to(stranger: Terminal) -> None:
    async with stranger.start_command(
        "login", stranger.api_server.url, "--no-open", BYLINE_URL=""
    ) as command:
        async with stranger.open_link(await command.link("/authorize")) as page:
            await page.form(submit="Allow")
        assert (await command.end()).code == 0

    assert (await stranger.run_successfully("whoami", BYLINE_URL="")).out.count(stranger.api_server.url) == 2


async def test_declining_signs_nobody_in(stranger: Terminal) -> None:
    result = await stranger.log_in(button="Decline")

    assert (result.code, result.out) == (4, "")
    assert "You declined" in result.err
    assert stranger.configuration["sign_in"] is None


async def test_an_answer_to_another_sign_in_or_from_another_service_is_not_taken(stranger: Terminal) -> None:
    async with stranger.start_command("login", "--no-open") as command, Browser() as intruder:
        link = await command.link("/authorize")
        async with stranger.open_link(link) as page:
            back = re.search(r"redirect_uri=http%3A%2F%2F127.0.0.1%3A(\d+)", link)
            state = re.search(r"state=([\w-]+)", link)
            assert back
            assert state
            callback = f"http://127.0.0.1:{back[1]}/callback"
            assert (await intruder.open(f"{callback}?code=c&state=guessed")).status == 400
            assert (await intruder.open(f"http://127.0.0.1:{back[1]}/")).status == 404
            mixed_page = await intruder.open(f"{callback}?code=c&state={state[1]}&iss=https://other.example")
            assert mixed_page.status == 200
            del page
        result = await command.end()

    assert result.code == 4
    assert "another sign-in service" in result.err


async def test_at_an_issuer_that_others_wrote_the_program_finds_its_own_way_in(
    platform: Platform, tmp_path: Path
) -> None:
    client = RegisteredClient("byline", "s", ("http://127.0.0.1:9/sign-in/callback",))
    with oidc_provider(tmp_path, [client], ["mcp"]) as provider:
        issuer = IssuerSettings(issuer=provider.issuer, audience="another", client_id="byline")
        async with serve_api(platform, issuer=issuer) as api_server:
            somebody = Terminal(api_server, platform, tmp_path / "home")
            somebody.home.mkdir()
            async with somebody.start_command("login", "--no-open") as command, Browser() as browser:
                page = await browser.open(await command.link("/auth"))
                assert "terminal" in (await provider.let_in(page, "alice")).text
                result = await command.end()
            assert result.code == 0, result
            somebody.write_configuration(expires_at=time.time() - 1)
            me = (await somebody.run_successfully("whoami", "--json")).json

    assert (me["principal"]["issuer"], me["principal"]["subject"]) == (provider.issuer, "alice")


async def test_two_commands_at_once_renew_an_old_token_once_and_both_go_on(alice: Terminal) -> None:
    for _ in range(2):
        before = alice.configuration["sign_in"]["refresh_token"]
        alice.write_configuration(expires_at=time.time() - 1)
        results = await asyncio.gather(*(alice("whoami") for _ in range(3)))

        assert [result.code for result in results] == [0, 0, 0], results
        assert alice.configuration["sign_in"]["refresh_token"] != before


async def test_a_token_that_is_refused_before_its_time_is_renewed(alice: Terminal) -> None:
    alice.write_configuration(access_token="of a gateway with other keys")

    assert (await alice("whoami")).code == 0


async def test_signing_out_ends_the_sign_in_at_the_gateway_too(alice: Terminal) -> None:
    before = alice.configuration
    await alice.run_successfully("logout")

    assert alice.configuration == {"registration": before["registration"], "sign_in": None}
    (file,) = [path for path in alice.files if path.suffix == ".json"]
    file.write_text(json.dumps(before))
    alice.write_configuration(expires_at=time.time() - 1)
    assert (await alice("whoami")).code == 4


async def test_a_call_prints_its_link_and_goes_on_once_the_person_consented(alice: Terminal) -> None:
    async with alice.start_command(*READ) as command:
        await alice.consent_in_browser(await command.link("/connect/"))
        result = await command.end()

    assert result.code == 0, result
    assert result.json["id"] == NORTHWIND
    assert "Waits for you: " in result.err
    assert f"read_account salesforce:account/{NORTHWIND}: allowed" in result.err


async def test_a_question_is_asked_and_answered_in_the_terminal(alice: Terminal) -> None:
    screen, keyboard = os.openpty()
    os.set_blocking(screen, False)
    screen_text = ""

    async def wait_until_shown(text: str) -> None:
        """Return once the screen shows this, below what was waited for before."""

        async def is_there() -> bool:
            nonlocal screen_text
            with contextlib.suppress(OSError):
                screen_text += os.read(screen, 65_536).decode()
            return text in screen_text

        nonlocal screen_text
        await wait_until(is_there)
        screen_text = screen_text.partition(text)[2]

    async with alice.start_command("call", "choose_account", "--arg", "name=Acme", tty=keyboard) as command:
        os.close(keyboard)
        for prompt, typed_text in (
            ("As the CRM spells it. (Northwind or Contoso): ", "Initech\n"),
            ("'Initech' is not Northwind or Contoso", ""),
            ("As the CRM spells it. (Northwind or Contoso): ", "Contoso\n"),
            ("(a whole number) [0]: ", "\n"),
            ("(text): ", "\n"),
            ("(true or false) [False]: ", "yes\n"),
        ):
            await wait_until_shown(prompt)
            os.write(screen, typed_text.encode())
        result = await command.end()
    os.close(screen)

    assert result.code == 0, result
    assert result.json == {"account": "Contoso", "discount": 0, "note": None, "urgent": True}


async def test_with_json_a_call_leaves_a_run_that_waits_and_says_all_of_it_in_one_document(
    alice: Terminal,
) -> None:
    left = await alice(*READ, "--json")

    assert left.code == 3, left
    assert left.json["status"] == "waiting"
    (wait,) = left.json["steps"][0]["waiting_for"]
    assert wait["url"].startswith(f"{alice.api_server.url}/connect/")
    async with alice.start_command("runs", "follow", left.json["id"], "--json", "--wait") as command:
        await alice.consent_in_browser(await command.link("/connect/"))
        result = await command.end()
    assert result.code == 0, result
    assert result.json["status"] == "completed"


async def test_ctrl_c_leaves_the_run_to_itself_and_says_how_to_come_back(alice: Terminal) -> None:
    async with alice.start_command(*READ) as command:
        link = await command.link("/connect/")
        command.process.send_signal(signal.SIGINT)
        result = await command.end()
    match = re.search(r"byline runs follow (\S+)", result.err)
    assert result.code == 130, result
    assert match
    await alice.consent_in_browser(link)

    assert (await alice.run_successfully("runs", "follow", match[1])).json["id"] == NORTHWIND


async def test_the_same_key_calls_once(alice: Terminal) -> None:
    (alice.home / "arguments.json").write_text(json.dumps({"account_id": NORTHWIND}))
    key_options = ("--json", "--idempotency-key", "monday")
    first = await alice(*READ, *key_options)
    second = await alice("call", "read_once", "--args-json", "arguments.json", *key_options)

    assert first.json["id"] == second.json["id"]


async def test_runs_are_listed_shown_cancelled_and_tried_again(alice: Terminal) -> None:
    run = (await alice(*READ, "--json")).json["id"]

    assert run in (await alice.run_successfully("runs", "list", "--status", "waiting")).out
    assert "waits for" in (await alice.run_successfully("runs", "show", run)).out
    await alice.run_successfully("runs", "cancel", run, "--reason", "no longer needed")
    result = await alice("runs", "follow", run)
    assert (result.code, result.out) == (1, "")
    assert "read_once did not succeed" in result.err
    again = (await alice.run_successfully("runs", "retry", run, "--json")).json
    assert again["retry_of"] == run
    assert (await alice("runs", "terminate", run, "--reason", "x")).code == 4


async def test_tools_are_listed_and_shown_with_what_they_take(alice: Terminal) -> None:
    listing = (await alice.run_successfully("tools")).out
    assert "read_once" in listing
    assert (await alice.run_successfully("tools", "list")).out == listing
    tool_text = (await alice.run_successfully("tools", "read_once")).out
    assert re.search(r"account_id +text +required", tool_text)
    assert "byline call read_once --arg account_id=…" in tool_text
    tool_document = (await alice.run_successfully("tools", "read_once", "--json")).json
    assert tool_document["input_schema"]["required"] == ["account_id"]


NOWHERE = "http://127.0.0.1:9"
MISTAKES: list[tuple[str, dict[str, str], int, str]] = [
    ("call read_once", {}, 2, "This tool also needs --arg account_id=…"),
    ("call read_once --arg account=1", {}, 2, "did you mean 'account_id'?"),
    ("call read_once --args", {}, 2, "No such option"),
    ("call nothing_like_it", {}, 1, "There is no tool 'nothing_like_it'"),
    ("call read_once --args-json -", {}, 2, "holds no JSON"),
    ("runs show nowhere", {}, 1, "You have no run 'nowhere'."),
    ("runs follow nowhere", {}, 1, "You have no run 'nowhere'."),
    ("runs list --status lost", {}, 2, "status"),
    (
        "schedules create never read_once --arg account_id=1",
        {},
        2,
        "Say when: with --cron, --every or --timing",
    ),
    ("login byline.example.com", {}, 2, "write the gateway's address"),
    ("whoami", {"BYLINE_URL": "nowhere"}, 2, "BYLINE_URL: "),
    ("whoami", {"BYLINE_TOKEN": "byline_x_y"}, 4, "Sign in with `byline login`"),
    ("whoami", {"BYLINE_URL": NOWHERE}, 4, "You are not signed in."),
    (
        "whoami",
        {"BYLINE_URL": NOWHERE, "BYLINE_TOKEN": "t"},
        5,
        f"The gateway at {NOWHERE} cannot be reached.",
    ),
    ("login --no-open", {"BYLINE_URL": NOWHERE}, 5, "does not answer"),
]


async def test_a_command_that_cannot_do_it_says_why_and_exits_with_the_code_for_that(alice: Terminal) -> None:
    results = await asyncio.gather(*(alice(*words.split(), **where) for words, where, _, _ in MISTAKES))

    for result, (words, _, code, expected_message) in zip(results, MISTAKES, strict=True):
        assert (words, result.code, result.out) == (words, code, ""), result
        assert expected_message in " ".join(result.err.split())


async def test_a_machine_calls_with_a_token_that_reaches_as_far_as_it_was_made_to(alice: Terminal) -> None:
    created = await alice.run_successfully(
        "tokens", "create", "nightly", "--tool", "read_once", "--days", "7"
    )
    token = {"BYLINE_TOKEN": created.out.strip()}
    alice.files[0].unlink()

    assert "not shown again" in created.err
    assert (await alice(*READ, "--json", **token)).code == 3
    refusal = await alice("call", "read_widely", "--arg", ACCOUNT, "--arg", "width=1", **token)
    assert (refusal.code, refusal.out) == (4, "")
    (listing,) = (await alice.run_successfully("tokens", "list", "--json", **token)).json["items"]
    assert (listing["name"], listing["tools"]) == ("nightly", ["read_once"])
    await alice.run_successfully("tokens", "revoke", listing["id"], **token)
    assert (await alice("tools", **token)).code == 4


async def test_what_somebody_granted_is_shown_and_revoked(alice: Terminal, platform: Platform) -> None:
    async with alice.start_command(*READ) as command:
        await alice.consent_in_browser(await command.link("/connect/"))
        await command.end()

    listing = (await alice.run_successfully("connections", "list")).out
    assert re.search(rf"crm .*{re.escape(platform.systems['crm'].find_account('alice'))}", listing)
    await alice.run_successfully("connections", "remove", "crm")
    again = await alice("connections", "remove", "crm")
    assert (again.code, again.err.strip()) == (1, "You have no grant on connection 'crm'.")
    assert (await alice(*READ, "--json")).code == 3


async def test_an_account_is_connected_before_anything_needs_it(alice: Terminal, platform: Platform) -> None:
    left = await alice("connections", "add", "crm", "--json")
    async with alice.start_command("connections", "add", "crm") as command:
        link = await command.link("/connect/")
        await alice.consent_in_browser(link)
        result = await command.end()
    async with alice.start_command("connections", "add", "support") as command:
        async with alice.open_link(await command.link("/connect/")) as page:
            await page.form(submit="Decline")
        declined_result = await command.end()
    unknown = await alice("connections", "add", "nowhere")
    listing = (await alice.run_successfully("connections", "list")).out

    assert (left.code, left.json["state"], left.json["url"]) == (3, "open", link)
    assert result.code == 0, result
    assert "An account is connected on crm." in result.out
    assert (declined_result.code, declined_result.err.splitlines()[-1]) == (
        1,
        "You declined. Nothing was connected.",
    )
    assert (unknown.code, "nowhere" in unknown.err) == (1, True)
    assert re.search(rf"crm .*{re.escape(platform.systems['crm'].find_account('alice'))}", listing)


async def test_accounts_are_chosen_checked_and_removed(
    alice: Terminal, platform: Platform, api_server: ApiServer
) -> None:
    me = (await alice.run_successfully("whoami", "--json")).json["principal"]
    principal = replace(
        await api_server.services.principals.resolve_principal(me["issuer"], me["subject"], me["name"]),
        subject="alice",
    )
    crm = platform.systems["crm"]
    bobs = crm.find_account("bob")
    missing = await alice("tools", "check", "read_once")
    await platform.give_grant("crm", principal)
    await platform.give_grant("crm", principal, account="bob")
    unclear = await alice("tools", "check", "read_once", "--json")
    refusal = await alice("connections", "remove", "crm")
    await alice.run_successfully("connections", "use", "crm", bobs)
    await alice.run_successfully(
        "connections", "use", "crm", crm.find_account("alice"), "--tool", "read_widely"
    )
    ready = await alice.run_successfully("tools", "check", "read_once")
    listing = (await alice.run_successfully("connections", "list")).out
    await alice.run_successfully("call", "read_once", "--arg", f"account_id={CONTOSO}")
    await alice.run_successfully("connections", "use", "crm", "--tool", "read_widely")
    await alice.run_successfully("connections", "remove", "crm", "--account", bobs)
    left = (await alice.run_successfully("connections", "list", "--json")).json["items"]

    assert (missing.code, "Acme CRM is not connected yet." in missing.out) == (3, True)
    assert (unclear.code, unclear.json["connections"][0]["state"]) == (3, "choice_needed")
    assert (refusal.code, bobs in refusal.err) == (1, True)
    assert "A call would wait for no sign-in." in ready.out
    assert re.search(rf"crm .*{re.escape(bobs)} .*used by every tool without its own", listing)
    assert re.search(rf"crm .*{re.escape(crm.find_account('alice'))} .*used by read_widely", listing)
    assert platform.list_requests("crm")[-1]["account"] == bobs
    (connection,) = [entry for entry in left if entry["name"] == "crm"]
    assert [entry["account"] for entry in connection["accounts"]] == [crm.find_account("alice")]
    assert connection["chosen"] == [{"tool": None, "account": bobs}]


async def test_a_schedule_is_made_paused_resumed_and_deleted(alice: Terminal) -> None:
    when = ("--cron", "30 7 * * MON-FRI", "--time-zone", "Europe/Berlin", "--jitter", "5m")
    output = (
        await alice.run_successfully(
            "schedules", "create", "Morning", "read_once", "--arg", ACCOUNT, *when, "--json"
        )
    ).json

    assert (output["timing"]["cron"], output["timing"]["jitter_seconds"]) == (["30 7 * * MON-FRI"], 300)
    assert "Morning" in (await alice.run_successfully("schedules", "list")).out
    await alice.run_successfully("schedules", "pause", output["id"], "--reason", "holidays")
    assert "paused: holidays" in (await alice.run_successfully("schedules", "show", output["id"])).out
    await alice.run_successfully("schedules", "resume", output["id"])
    await alice.run_successfully("schedules", "delete", output["id"])
    assert (await alice("schedules", "show", output["id"])).code == 1


async def test_no_server_gets_a_terminal_to_obey_it(alice: Terminal, api_server: ApiServer) -> None:
    me = (await alice.run_successfully("whoami", "--json")).json["principal"]
    await api_server.services.principals.resolve_principal(me["issuer"], me["subject"], "Al\x1b[2Jice \u202e")

    async def is_known() -> bool:
        return "x1b" in (await alice.run_successfully("whoami")).out

    await wait_until(is_known)
    for words in (("whoami",), ("whoami", "--json")):
        output = (await alice.run_successfully(*words)).out
        assert not {"\x1b", "\u202e"} & set(output)
