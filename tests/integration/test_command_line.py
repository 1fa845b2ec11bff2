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
from tests.foreign.oidc_provider import Client, oidc_provider
from tests.platform import CONTOSO, DEADLINE, NORTHWIND, Platform, until
from tests.rest import Rest, serving
from tests.sandbox import CALLBACK

PROGRAM = Path(sys.executable).with_name("byline")
PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}
ACCOUNT = f"account_id={NORTHWIND}"
READ = ("call", "read_once", "--arg", ACCOUNT)


@dataclass(frozen=True)
class Ended:
    """What became of a command."""

    code: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)


@dataclass
class Started:
    """A command that runs; `said` is what it told so far."""

    process: asyncio.subprocess.Process
    said: str = ""

    async def link(self, path: str) -> str:
        """The next address with this path that it prints, once it does."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE):
            while line := (await self.process.stderr.readline()).decode():
                self.said += line
                if found := re.search(rf"https?://\S+{path}\S*", line):
                    return found[0]
        raise AssertionError(f"it ended without a link: {self.said}")

    async def end(self) -> Ended:
        """How it ends."""
        async with asyncio.timeout(DEADLINE):
            out, err = await self.process.communicate()
        return Ended(self.process.returncode, out.decode(), self.said + (err or b"").decode())


@dataclass(frozen=True)
class Terminal:
    """Somebody's terminal, on a computer with nothing but a home folder, and their browser."""

    rest: Rest
    platform: Platform
    home: Path
    username: str = "alice"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What commands left in the home folder."""
        return [path for path in self.home.rglob("*") if path.is_file()]

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept of the sign-in."""
        (file,) = [path for path in self.files if path.suffix == ".json"]
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def keep(self, **changed: object) -> None:
        """Have something else kept of the tokens."""
        (file,) = [path for path in self.files if path.suffix == ".json"]
        kept = json.loads(file.read_text())
        file.write_text(json.dumps({**kept, "sign_in": {**kept["sign_in"], **changed}}))

    @asynccontextmanager
    async def begun(
        self, *arguments: str, tty: int | None = None, **environment: str
    ) -> AsyncIterator[Started]:
        """Begin a command, at a terminal where there is one."""
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
        own = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config"), "COLUMNS": "200"}
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.home,
            env={**foreign, **own, "BYLINE_URL": self.rest.url, **self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL if tty is None else tty,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if tty is None else tty,
        )
        try:
            yield Started(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def __call__(self, *arguments: str, **environment: str) -> Ended:
        """Run a command to its end."""
        async with self.begun(*arguments, tty=None, **environment) as started:
            return await started.end()

    async def answer(self, *arguments: str, **environment: str) -> Ended:
        """Run a command that goes well."""
        ended = await self(*arguments, **environment)
        assert ended.code == 0, ended
        return ended

    @asynccontextmanager
    async def browser(self, link: str) -> AsyncIterator[Page]:
        """The person's browser at a link of the gateway, signed in."""
        async with Browser(stop_at=CALLBACK) as browser:
            page = await browser.open(link)
            if "/sign-in" in page.url:
                page = await page.form(
                    submit="Sign in", username=self.username, password=PASSWORDS[self.username]
                )
            yield page

    async def login(self, *, button: str = "Allow") -> Ended:
        """Sign in as a person does: read the link, answer in the browser."""
        async with self.begun("login", "--no-open") as started:
            async with self.browser(await started.link("/authorize")) as page:
                answered = await page.form(submit=button)
                assert "terminal" in answered.text, answered
            return await started.end()

    async def consent(self, link: str, system: str = "crm") -> Page:
        """Open the link of a run, and let Byline use the person's account at this system."""
        account = self.platform.systems[system].account(self.username)
        async with self.browser(link) as asked:
            page = await asked.form(submit="Continue")
            page = await page.form(submit="Sign in", username=account, password=f"{self.username}-{system}")
            page = await page.form(submit="Allow")
            # The sandbox knows one address to come back to, which is not this gateway's.
            return await page.browser.open(page.url.replace(CALLBACK, f"{self.rest.url}/oauth/callback"))


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        await BuiltInPeople(rest.services.database).add_demo_people()
        yield rest


@pytest.fixture
def stranger(rest: Rest, platform: Platform, tmp_path: Path) -> Terminal:
    """Somebody who has not signed in."""
    home = tmp_path / "home"
    home.mkdir()
    return Terminal(rest, platform, home)


@pytest.fixture
async def alice(stranger: Terminal) -> Terminal:
    ended = await stranger.login()
    assert ended.code == 0, ended
    return stranger


async def test_signing_in_keeps_tokens_that_only_their_owner_can_read(stranger: Terminal) -> None:
    ended = await stranger.login()

    assert (ended.code, ended.out) == (0, f"You are Alice Liddell at {stranger.rest.url}.\n")
    assert stranger.files
    assert {stat.S_IMODE(path.stat().st_mode) for path in stranger.files if path.stat().st_size} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in stranger.files} == {0o700}
    me = (await stranger.answer("whoami", "--json")).json
    assert me["principal"]["name"] == "Alice Liddell"
    assert me["actor"]["name"] == "Byline command line"
    assert me["gateway"] == stranger.rest.url


async def test_a_computer_registers_once_however_often_somebody_signs_in(alice: Terminal) -> None:
    before = alice.kept
    await alice.login()

    assert alice.kept["registration"] == before["registration"]
    assert alice.kept["sign_in"]["refresh_token"] != before["sign_in"]["refresh_token"]


async def test_later_commands_talk_to_the_gateway_that_was_signed_in_to(stranger: Terminal) -> None:
    async with stranger.begun("login", stranger.rest.url, "--no-open", BYLINE_URL="") as started:
        async with stranger.browser(await started.link("/authorize")) as page:
            await page.form(submit="Allow")
        assert (await started.end()).code == 0

    assert (await stranger.answer("whoami", BYLINE_URL="")).out.count(stranger.rest.url) == 2


async def test_declining_signs_nobody_in(stranger: Terminal) -> None:
    ended = await stranger.login(button="Decline")

    assert (ended.code, ended.out) == (4, "")
    assert "You declined" in ended.err
    assert stranger.kept["sign_in"] is None


async def test_an_answer_to_another_sign_in_or_from_another_service_is_not_taken(stranger: Terminal) -> None:
    async with stranger.begun("login", "--no-open") as started, Browser() as intruder:
        link = await started.link("/authorize")
        async with stranger.browser(link) as page:
            back = re.search(r"redirect_uri=http%3A%2F%2F127.0.0.1%3A(\d+)", link)
            state = re.search(r"state=([\w-]+)", link)
            assert back
            assert state
            callback = f"http://127.0.0.1:{back[1]}/callback"
            assert (await intruder.open(f"{callback}?code=c&state=guessed")).status == 400
            assert (await intruder.open(f"http://127.0.0.1:{back[1]}/")).status == 404
            mixed = await intruder.open(f"{callback}?code=c&state={state[1]}&iss=https://other.example")
            assert mixed.status == 200
            del page
        ended = await started.end()

    assert ended.code == 4
    assert "another sign-in service" in ended.err


async def test_at_an_issuer_that_others_wrote_the_program_finds_its_own_way_in(
    platform: Platform, tmp_path: Path
) -> None:
    client = Client("byline", "s", ("http://127.0.0.1:9/sign-in/callback",))
    with oidc_provider(tmp_path, [client], ["mcp"]) as provider:
        issuer = IssuerSettings(issuer=provider.issuer, audience="another", client_id="byline")
        async with serving(platform, issuer=issuer) as rest:
            somebody = Terminal(rest, platform, tmp_path / "home")
            somebody.home.mkdir()
            async with somebody.begun("login", "--no-open") as started, Browser() as browser:
                page = await browser.open(await started.link("/auth"))
                assert "terminal" in (await provider.let_in(page, "alice")).text
                ended = await started.end()
            assert ended.code == 0, ended
            somebody.keep(expires_at=time.time() - 1)
            me = (await somebody.answer("whoami", "--json")).json

    assert (me["principal"]["issuer"], me["principal"]["subject"]) == (provider.issuer, "alice")


async def test_two_commands_at_once_renew_an_old_token_once_and_both_go_on(alice: Terminal) -> None:
    for _ in range(2):
        before = alice.kept["sign_in"]["refresh_token"]
        alice.keep(expires_at=time.time() - 1)
        ended = await asyncio.gather(*(alice("whoami") for _ in range(3)))

        assert [each.code for each in ended] == [0, 0, 0], ended
        assert alice.kept["sign_in"]["refresh_token"] != before


async def test_a_token_that_is_refused_before_its_time_is_renewed(alice: Terminal) -> None:
    alice.keep(access_token="of a gateway with other keys")

    assert (await alice("whoami")).code == 0


async def test_signing_out_ends_the_sign_in_at_the_gateway_too(alice: Terminal) -> None:
    before = alice.kept
    await alice.answer("logout")

    assert alice.kept == {"registration": before["registration"], "sign_in": None}
    (file,) = [path for path in alice.files if path.suffix == ".json"]
    file.write_text(json.dumps(before))
    alice.keep(expires_at=time.time() - 1)
    assert (await alice("whoami")).code == 4


async def test_a_call_tells_its_link_and_goes_on_once_the_person_consented(alice: Terminal) -> None:
    async with alice.begun(*READ) as started:
        await alice.consent(await started.link("/connect/"))
        ended = await started.end()

    assert ended.code == 0, ended
    assert ended.json["id"] == NORTHWIND
    assert "Waits for you: " in ended.err
    assert f"read_account salesforce:account/{NORTHWIND}: allowed" in ended.err


async def test_a_question_is_asked_and_answered_in_the_terminal(alice: Terminal) -> None:
    screen, keyboard = os.openpty()
    os.set_blocking(screen, False)
    seen = ""

    async def shown(text: str) -> None:
        """Return once the screen shows this, below what was waited for before."""

        async def is_there() -> bool:
            nonlocal seen
            with contextlib.suppress(OSError):
                seen += os.read(screen, 65_536).decode()
            return text in seen

        nonlocal seen
        await until(is_there)
        seen = seen.partition(text)[2]

    async with alice.begun("call", "choose_account", "--arg", "name=Acme", tty=keyboard) as started:
        os.close(keyboard)
        for prompt, typed in (
            ("As the CRM spells it. (Northwind or Contoso): ", "Initech\n"),
            ("'Initech' is not Northwind or Contoso", ""),
            ("As the CRM spells it. (Northwind or Contoso): ", "Contoso\n"),
            ("(a whole number) [0]: ", "\n"),
            ("(text): ", "\n"),
            ("(true or false) [False]: ", "yes\n"),
        ):
            await shown(prompt)
            os.write(screen, typed.encode())
        ended = await started.end()
    os.close(screen)

    assert ended.code == 0, ended
    assert ended.json == {"account": "Contoso", "discount": 0, "note": None, "urgent": True}


async def test_with_json_a_call_leaves_a_run_that_waits_and_says_all_of_it_in_one_document(
    alice: Terminal,
) -> None:
    left = await alice(*READ, "--json")

    assert left.code == 3, left
    assert left.json["status"] == "waiting"
    (wait,) = left.json["steps"][0]["waiting_for"]
    assert wait["url"].startswith(f"{alice.rest.url}/connect/")
    async with alice.begun("runs", "follow", left.json["id"], "--json", "--wait") as started:
        await alice.consent(await started.link("/connect/"))
        ended = await started.end()
    assert ended.code == 0, ended
    assert ended.json["status"] == "completed"


async def test_ctrl_c_leaves_the_run_to_itself_and_says_how_to_come_back(alice: Terminal) -> None:
    async with alice.begun(*READ) as started:
        link = await started.link("/connect/")
        started.process.send_signal(signal.SIGINT)
        ended = await started.end()
    found = re.search(r"byline runs follow (\S+)", ended.err)
    assert ended.code == 130, ended
    assert found
    await alice.consent(link)

    assert (await alice.answer("runs", "follow", found[1])).json["id"] == NORTHWIND


async def test_the_same_key_calls_once(alice: Terminal) -> None:
    (alice.home / "arguments.json").write_text(json.dumps({"account_id": NORTHWIND}))
    keyed = ("--json", "--idempotency-key", "monday")
    first = await alice(*READ, *keyed)
    second = await alice("call", "read_once", "--args-json", "arguments.json", *keyed)

    assert first.json["id"] == second.json["id"]


async def test_runs_are_listed_shown_cancelled_and_tried_again(alice: Terminal) -> None:
    run = (await alice(*READ, "--json")).json["id"]

    assert run in (await alice.answer("runs", "list", "--status", "waiting")).out
    assert "waits for" in (await alice.answer("runs", "show", run)).out
    await alice.answer("runs", "cancel", run, "--reason", "no longer needed")
    ended = await alice("runs", "follow", run)
    assert (ended.code, ended.out) == (1, "")
    assert "read_once did not succeed" in ended.err
    again = (await alice.answer("runs", "retry", run, "--json")).json
    assert again["retry_of"] == run
    assert (await alice("runs", "terminate", run, "--reason", "x")).code == 4


async def test_tools_are_listed_and_shown_with_what_they_take(alice: Terminal) -> None:
    listed = (await alice.answer("tools")).out
    assert "read_once" in listed
    assert (await alice.answer("tools", "list")).out == listed
    shown = (await alice.answer("tools", "read_once")).out
    assert re.search(r"account_id +text +required", shown)
    assert "byline call read_once --arg account_id=…" in shown
    described = (await alice.answer("tools", "read_once", "--json")).json
    assert described["input_schema"]["required"] == ["account_id"]


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
    made = await asyncio.gather(*(alice(*words.split(), **where) for words, where, _, _ in MISTAKES))

    for ended, (words, _, code, told) in zip(made, MISTAKES, strict=True):
        assert (words, ended.code, ended.out) == (words, code, ""), ended
        assert told in " ".join(ended.err.split())


async def test_a_machine_calls_with_a_token_that_reaches_as_far_as_it_was_made_to(alice: Terminal) -> None:
    made = await alice.answer("tokens", "create", "nightly", "--tool", "read_once", "--days", "7")
    token = {"BYLINE_TOKEN": made.out.strip()}
    alice.files[0].unlink()

    assert "not shown again" in made.err
    assert (await alice(*READ, "--json", **token)).code == 3
    refused = await alice("call", "read_widely", "--arg", ACCOUNT, "--arg", "width=1", **token)
    assert (refused.code, refused.out) == (4, "")
    (listed,) = (await alice.answer("tokens", "list", "--json", **token)).json["items"]
    assert (listed["name"], listed["tools"]) == ("nightly", ["read_once"])
    await alice.answer("tokens", "revoke", listed["id"], **token)
    assert (await alice("tools", **token)).code == 4


async def test_what_somebody_granted_is_shown_and_given_up(alice: Terminal, platform: Platform) -> None:
    async with alice.begun(*READ) as started:
        await alice.consent(await started.link("/connect/"))
        await started.end()

    listed = (await alice.answer("connections", "list")).out
    assert re.search(rf"crm .*{re.escape(platform.systems['crm'].account('alice'))}", listed)
    await alice.answer("connections", "remove", "crm")
    again = await alice("connections", "remove", "crm")
    assert (again.code, again.err.strip()) == (1, "You have no grant on connection 'crm'.")
    assert (await alice(*READ, "--json")).code == 3


async def test_an_account_is_connected_before_anything_needs_it(alice: Terminal, platform: Platform) -> None:
    left = await alice("connections", "add", "crm", "--json")
    async with alice.begun("connections", "add", "crm") as started:
        link = await started.link("/connect/")
        await alice.consent(link)
        ended = await started.end()
    async with alice.begun("connections", "add", "support") as started:
        async with alice.browser(await started.link("/connect/")) as page:
            await page.form(submit="Decline")
        declined = await started.end()
    unknown = await alice("connections", "add", "nowhere")
    listed = (await alice.answer("connections", "list")).out

    assert (left.code, left.json["state"], left.json["url"]) == (3, "open", link)
    assert ended.code == 0, ended
    assert "An account is connected on crm." in ended.out
    assert (declined.code, declined.err.splitlines()[-1]) == (1, "You declined. Nothing was connected.")
    assert (unknown.code, "nowhere" in unknown.err) == (1, True)
    assert re.search(rf"crm .*{re.escape(platform.systems['crm'].account('alice'))}", listed)


async def test_accounts_are_chosen_checked_and_removed(
    alice: Terminal, platform: Platform, rest: Rest
) -> None:
    me = (await alice.answer("whoami", "--json")).json["principal"]
    principal = replace(
        await rest.services.principals.resolve_principal(me["issuer"], me["subject"], me["name"]),
        subject="alice",
    )
    crm = platform.systems["crm"]
    bobs = crm.account("bob")
    missing = await alice("tools", "check", "read_once")
    await platform.grant("crm", principal)
    await platform.grant("crm", principal, account="bob")
    unclear = await alice("tools", "check", "read_once", "--json")
    refused = await alice("connections", "remove", "crm")
    await alice.answer("connections", "use", "crm", bobs)
    await alice.answer("connections", "use", "crm", crm.account("alice"), "--tool", "read_widely")
    ready = await alice.answer("tools", "check", "read_once")
    listed = (await alice.answer("connections", "list")).out
    await alice.answer("call", "read_once", "--arg", f"account_id={CONTOSO}")
    await alice.answer("connections", "use", "crm", "--tool", "read_widely")
    await alice.answer("connections", "remove", "crm", "--account", bobs)
    left = (await alice.answer("connections", "list", "--json")).json["items"]

    assert (missing.code, "Acme CRM is not connected yet." in missing.out) == (3, True)
    assert (unclear.code, unclear.json["connections"][0]["state"]) == (3, "choice_needed")
    assert (refused.code, bobs in refused.err) == (1, True)
    assert "A call would wait for no sign-in." in ready.out
    assert re.search(rf"crm .*{re.escape(bobs)} .*used by every tool without its own", listed)
    assert re.search(rf"crm .*{re.escape(crm.account('alice'))} .*used by read_widely", listed)
    assert platform.requests("crm")[-1]["account"] == bobs
    (connection,) = [each for each in left if each["name"] == "crm"]
    assert [each["account"] for each in connection["accounts"]] == [crm.account("alice")]
    assert connection["chosen"] == [{"tool": None, "account": bobs}]


async def test_a_schedule_is_made_paused_resumed_and_deleted(alice: Terminal) -> None:
    when = ("--cron", "30 7 * * MON-FRI", "--time-zone", "Europe/Berlin", "--jitter", "5m")
    made = (
        await alice.answer("schedules", "create", "Morning", "read_once", "--arg", ACCOUNT, *when, "--json")
    ).json

    assert (made["timing"]["cron"], made["timing"]["jitter_seconds"]) == (["30 7 * * MON-FRI"], 300)
    assert "Morning" in (await alice.answer("schedules", "list")).out
    await alice.answer("schedules", "pause", made["id"], "--reason", "holidays")
    assert "paused: holidays" in (await alice.answer("schedules", "show", made["id"])).out
    await alice.answer("schedules", "resume", made["id"])
    await alice.answer("schedules", "delete", made["id"])
    assert (await alice("schedules", "show", made["id"])).code == 1


async def test_no_server_gets_a_terminal_to_obey_it(alice: Terminal, rest: Rest) -> None:
    me = (await alice.answer("whoami", "--json")).json["principal"]
    await rest.services.principals.resolve_principal(me["issuer"], me["subject"], "Al\x1b[2Jice \u202e")

    async def is_known() -> bool:
        return "x1b" in (await alice.answer("whoami")).out

    await until(is_known)
    for words in (("whoami",), ("whoami", "--json")):
        told = (await alice.answer(*words)).out
        assert not {"\x1b", "\u202e"} & set(told)
