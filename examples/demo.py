"""The demo, on this machine: two people, three systems, three crashes, and the answer to "who changed this?"."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from mcp_types import CallToolResult, TextContent

from engine.errors import BylineError
from examples.chat import Person, open_chat
from gateway.dev.stack import EmbeddedStack
from gateway.sign_in.demo_people import DEMO_PEOPLE

ACCOUNT, CUSTOMER, TICKET = "001D000000IRFmaIAP", "cus_NffrFeUfNV2Hib", 35436
_ARGUMENTS = {"account_id": ACCOUNT, "customer_id": CUSTOMER, "ticket_id": TICKET}
_UPSTREAM_NAMES = {
    "alice": {
        "crm": "alice.liddell@acme-crm.example",
        "billing": "a.liddell@acme-billing.example",
        "support": "alice@acme-support.example",
    },
    "bob": {
        "crm": "bob.baker@acme-crm.example",
        "billing": "b.baker@acme-billing.example",
        "support": "bob@acme-support.example",
    },
}
_BEGAN = time.monotonic()


def say(text: str = "") -> None:
    """Print a text, with the seconds since the start of the demo."""
    for line in text.splitlines() or [""]:
        sys.stdout.write(f"{time.monotonic() - _BEGAN:6.1f}s  {line}\n" if line else "\n")
    sys.stdout.flush()


def find_person(username: str, stack: EmbeddedStack) -> Person:
    """Return one of the demo people, with their accounts in the sandbox."""
    password = next(demo_person.password for demo_person in DEMO_PEOPLE if demo_person.username == username)
    accounts = {
        urlsplit(f"//127.0.0.1:{stack.variables[f'{system.upper()}_PORT']}").netloc: (
            account,
            f"{username}-{system}",
        )
        for system, account in _UPSTREAM_NAMES[username].items()
    }
    return Person(username, password, accounts)


async def crash(stack: EmbeddedStack) -> None:
    """Kill worker, gateway and Temporal server with SIGKILL, and start them again."""
    for name in ("worker", "gateway", "temporal"):
        say(f"kill -9 {name} (process {stack.find_pid(name)})")
        await stack.kill_service(name)
    for name in ("temporal", "worker", "gateway"):
        await stack.start_service(name)
        await stack.wait_until_ready(name)
        say(f"{name} is back (process {stack.find_pid(name)})")


async def call_tool(who: Person, stack: EmbeddedStack, *, crashes: bool) -> CallToolResult:
    """Call the tool in this person's name, and complete the sign-ins that it asks for."""
    async with open_chat(who, stack.mcp_url) as client:
        listing = await client.list_tools()
        say(
            f"{who.username}'s chat client signed in and sees: {', '.join(tool.name for tool in listing.tools)}"
        )
        say(f"{who.username} calls resolve_billing_dispute {_ARGUMENTS}")
        calling = asyncio.create_task(client.call_tool("resolve_billing_dispute", _ARGUMENTS))
        links = [await _next_link(who, calling) for _ in range(3)]
        say(f"the run waits; {who.username} is asked for three sign-ins at once:")
        say("\n".join(f"  {link}" for link in links))
        if crashes:
            say()
            await crash(stack)
            say()
        for link in links:
            page = await who.connect(link)
            if page.status != HTTPStatus.OK:
                raise DemoFailed(f"the sign-in ended on a page with status {page.status}: {page.text}")
            say(f"{who.username} opens {urlsplit(link).path}, signs in upstream and consents")
        who.has_signed_in.set()
        return await calling


async def _next_link(who: Person, calling: "asyncio.Task[CallToolResult]") -> str:
    waiting = asyncio.create_task(who.links.get())
    await asyncio.wait({waiting, calling}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    raise DemoFailed(f"the tool answered before it asked for all sign-ins: {_text(calling.result())}")


class DemoFailed(Exception):
    """The demo did not end as Byline promises."""


async def ask_who_changed(stack: EmbeddedStack) -> str:
    """Return what `byline audit` and `byline audit verify` print about the ticket. Raises StoryWentWrong."""
    command = (
        sys.executable,
        "-m",
        "gateway.cli",
        "audit",
        "--record",
        f"zendesk:ticket/{TICKET}",
        "--writes",
    )
    environment = stack.build_environment("gateway")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    answer, _ = await process.communicate()
    proof = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "audit",
        "verify",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    proof_output, _ = await proof.communicate()
    if process.returncode or proof.returncode or not answer.strip():
        raise DemoFailed(f"the audit trail has no valid answer: {answer.decode()} {proof_output.decode()}")
    return f"{answer.decode()}{proof_output.decode()}"


async def play_story(stack: EmbeddedStack) -> None:
    """Play the whole demo. Raises StoryWentWrong if a result is not the expected one."""
    say("starting Temporal server, worker, gateway and three upstream systems, each as a process of its own")
    await stack.start_all_services()
    say()
    alice, bob = find_person("alice", stack), find_person("bob", stack)
    result = await call_tool(alice, stack, crashes=True)
    say(f"the run continued where it had stopped and finished: {_text(result)}")
    if result.is_error or result.structured_content["ticket_status"] != "pending":
        raise DemoFailed("Alice's dispute was not resolved")
    say()
    result = await call_tool(bob, stack, crashes=False)
    say(f"the CRM refuses bob's request: {_text(result)}")
    if not result.is_error or not _text(result).startswith("permission_denied"):
        raise DemoFailed("Bob was not refused")
    say()
    say(f"Who changed ticket {TICKET}?")
    say(await ask_who_changed(stack))


def _text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def main() -> None:
    """Play the demo on a temporary data directory, which is deleted afterwards."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="byline-demo-") as directory:
        async with EmbeddedStack(Path(directory), environment=os.environ, report_progress=say) as stack:
            await play_story(stack)
        say()
        say("everything is stopped; `make run` starts the same stack and keeps it running")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (DemoFailed, BylineError) as error:
        sys.exit(f"the demo failed: {error}")
    except (asyncio.CancelledError, KeyboardInterrupt):
        with contextlib.suppress(BrokenPipeError):
            say("stopped")
        sys.exit(130)
