import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from sqlmodel import select

from engine.db.tables import BrowserSessionRow, PersonRow
from examples.browser import Browser
from tests.support.administration import set_active
from tests.support.page_server import PageServer, serve_pages


@pytest.fixture
async def byline(tmp_path: Path) -> AsyncIterator[PageServer]:
    async with serve_pages(tmp_path) as running:
        yield running


async def test_a_person_signs_in_and_goes_on_to_where_they_wanted_to(byline: PageServer) -> None:
    async with Browser() as browser:
        page = await byline.sign_in(browser, "alice", "/connect/unknown")

    assert page.url == f"{byline.url}/connect/unknown"
    assert "Signed in as <strong>Alice" in page.text


@pytest.mark.parametrize(
    ("username", "password"), [("alice", "wrong"), ("nobody", "alice-demo"), ("alice", "")]
)
async def test_a_wrong_password_and_an_unknown_person_get_the_same_answer(
    byline: PageServer, username: str, password: str
) -> None:
    async with Browser() as browser:
        page = await browser.open(f"{byline.url}/sign-in")
        page = await page.form(submit="Sign in", username=username, password=password)

    assert page.status == 401
    assert "The username or the password is wrong." in page.text
    assert "Signed in as" not in page.text


async def test_passwords_are_kept_as_argon2_hashes(byline: PageServer) -> None:
    async with byline.services.database.open_read_session() as session:
        people = (await session.exec(select(PersonRow))).all()

    assert {person.username for person in people} >= {"alice", "bob"}
    assert all(person.password_hash.startswith("$argon2id$") for person in people)


async def submit_sign_in(client: httpx2.AsyncClient, page: httpx2.Response) -> httpx2.Response:
    """What answers Alice's form on a sign-in page."""
    token = page.text.split('name="csrf_token" value="')[1].split('"')[0]
    form = {"csrf_token": token, "username": "alice", "password": "alice-demo", "next": "/"}
    return await client.post("/sign-in", data=form)


async def test_signing_in_changes_the_session_so_that_a_planted_one_is_worth_nothing(
    byline: PageServer,
) -> None:
    async with httpx2.AsyncClient(base_url=byline.url, cookies={"byline": "planted"}) as client:
        page = await client.get("/sign-in")
        visit = client.cookies["byline-visit"]
        after = await submit_sign_in(client, page)
        cookies = {cookie.name: cookie.value for cookie in client.cookies.jar if cookie.domain}
    planted_cookies = {"byline": "planted", "byline-visit": visit}
    async with httpx2.AsyncClient(base_url=byline.url, cookies=planted_cookies) as thief:
        front = await thief.get("/")
        again = [await submit_sign_in(thief, page) for _ in range(2)]

    assert after.status_code == 303
    assert "byline-visit" not in cookies
    assert cookies["byline"] not in planted_cookies.values()
    assert "Signed in as" not in front.text
    assert [response.status_code for response in again] == [403, 403]
    (attempt,) = await byline.list_trail_events("attempt.refused")
    assert (attempt["error"], attempt["principal"]["name"]) == ("session_replaced", "Alice Liddell")


async def test_whoever_is_not_signed_in_leaves_nothing_behind(byline: PageServer) -> None:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        for _ in range(3):
            await client.get("/sign-in")
        async with byline.services.database.open_read_session() as session:
            before = (await session.exec(select(BrowserSessionRow))).all()
        await submit_sign_in(client, await client.get("/sign-in"))
        async with byline.services.database.open_read_session() as session:
            after = (await session.exec(select(BrowserSessionRow))).all()

    assert (len(before), len(after)) == (0, 1)


@pytest.mark.parametrize("visit", ["", "bm90aGluZw==", "%", "é", "altered", "over", "elsewhere"])
async def test_a_visit_that_byline_did_not_begin_or_that_is_over_signs_nobody_in(
    byline: PageServer, visit: str
) -> None:
    vault = byline.services.vault
    visit_content = {"csrf_token": "t", "data": {}, "until": 1 if visit == "over" else 1 << 40}
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        page = await client.get("/sign-in")
        own = client.cookies["byline-visit"]
        cookie_by_visit = {
            "altered": own[:40] + ("A" if own[40] != "A" else "B") + own[41:],
            "over": urlsafe_b64encode(
                await vault.seal_secret(json.dumps(visit_content).encode(), "browser visit")
            ).decode(),
            "elsewhere": urlsafe_b64encode(
                await vault.seal_secret(json.dumps(visit_content).encode(), "a grant")
            ).decode(),
        }
        token = "t" if visit in {"over", "elsewhere"} else page.text.split('value="')[1].split('"')[0]
        form = {"csrf_token": token, "username": "alice", "password": "alice-demo", "next": "/"}
        cookie = f"byline-visit={cookie_by_visit.get(visit, visit)}".encode()
        client.cookies.clear()
        refusal = await client.post("/sign-in", data=form, headers=[(b"cookie", cookie)])

    assert refusal.status_code == 403
    assert "set-cookie" not in refusal.headers


async def test_cookies_are_out_of_reach_for_scripts_and_other_sites_and_only_a_hash_is_kept(
    byline: PageServer,
) -> None:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        page = await client.get("/sign-in")
        after = await submit_sign_in(client, page)
        cookie = client.cookies["byline"]
    async with byline.services.database.open_read_session() as session:
        rows = (await session.exec(select(BrowserSessionRow))).all()

    for flags in (
        header.lower() for response in (page, after) for header in response.headers.get_list("set-cookie")
    ):
        assert "httponly" in flags
        assert "samesite=lax" in flags
    assert rows
    assert cookie not in repr(rows)


async def test_behind_https_the_cookie_belongs_to_this_host_alone(tmp_path: Path) -> None:
    async with (
        serve_pages(tmp_path, public_url="https://byline.example") as byline,
        httpx2.AsyncClient() as client,
    ):
        response = await client.get(f"{byline.url}/sign-in")

    cookie = response.headers["set-cookie"]
    assert cookie.startswith("__Host-byline-visit=")
    assert "; Secure" in cookie
    assert "; Path=/" in cookie
    assert "Domain" not in cookie


async def test_a_form_without_the_sessions_own_token_is_refused(byline: PageServer) -> None:
    form = {"csrf_token": "guessed", "username": "alice", "password": "alice-demo", "next": "/"}
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        await client.get("/sign-in")
        response = await client.post("/sign-in", data=form)
        page = await client.get("/")

    assert response.status_code == 403
    assert "Signed in as" not in page.text


async def test_a_sign_in_leads_to_no_other_site(byline: PageServer) -> None:
    async with Browser() as browser:
        page = await byline.sign_in(browser, "alice", "https://evil.example/")
    async with httpx2.AsyncClient() as anybody:
        for elsewhere in ("//evil.example", "/\\evil.example", "/\t/evil.example", "evil.example"):
            await anybody.get(f"{byline.url}/sign-in", params={"next": elsewhere})

    assert page.url == f"{byline.url}/"
    (attempt,) = await byline.list_trail_events("attempt.refused")
    assert attempt["error"] == "redirect_refused"
    assert "evil" not in str(attempt)


async def test_a_deactivated_person_reads_so_and_is_not_signed_in(byline: PageServer) -> None:
    async with Browser() as browser, Browser() as other:
        await byline.sign_in(browser, "bob")
        (bob,) = await byline.services.principals.find_by_name("Bob Baker")
        await set_active(byline.services, bob.id, is_active=False)
        refusal = await byline.sign_in(other, "bob")
        earlier = await browser.open(f"{byline.url}/")

    assert refusal.status == 403
    assert "was deactivated" in refusal.text
    assert "Signed in as" not in earlier.text


async def test_signing_out_ends_the_session_on_the_server(byline: PageServer) -> None:
    async with httpx2.AsyncClient(base_url=byline.url) as client, Browser() as browser:
        page = await byline.sign_in(browser, "alice")
        client.cookies.update(browser._client.cookies)
        page = await page.form(submit="Sign out")
        after = await client.get("/")

    assert page.status == 200
    assert "signed out" in page.text
    assert "Signed in as" not in after.text


async def test_every_page_forbids_scripts_and_frames(byline: PageServer) -> None:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        pages = [await client.get(path) for path in ("/", "/sign-in", "/oauth/callback")]
        styles = await client.get("/static/byline.css")

    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
        assert "unsafe" not in policy
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "<script" not in page.text
        assert "style=" not in page.text
    assert styles.status_code == 200
    assert styles.headers["content-type"].startswith("text/css")
