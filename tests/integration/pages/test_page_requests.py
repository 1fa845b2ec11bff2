from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from fastapi.routing import APIRoute
from temporalio.client import Client

from engine.schedules.schedules import Schedules
from engine.tools.registry import Registry
from gateway.pages.router import build_pages
from tests.support.page_server import PageServer, serve_pages

PUBLIC_PATHS = {"/", "/sign-in", "/oauth/client.json", "/oauth/callback"}


@pytest.fixture
async def byline(tmp_path: Path) -> AsyncIterator[PageServer]:
    async with serve_pages(tmp_path) as running:
        yield running


async def list_page_paths(byline: PageServer, method: str) -> list[str]:
    schedules = Schedules(byline.services, await Client.connect("127.0.0.1:1", lazy=True))
    page_routers = build_pages(byline.services, byline.gateway_services, Registry(()), schedules)
    page_routes = [route for router in page_routers for route in router.routes if isinstance(route, APIRoute)]
    return [
        route.path.replace("{", "").replace("}", "")
        for route in page_routes
        if method in (route.methods or ())
    ]


async def test_every_page_of_a_persons_own_sends_a_stranger_to_sign_in_and_back(byline: PageServer) -> None:
    page_paths = [path for path in await list_page_paths(byline, "GET") if path not in PUBLIC_PATHS]
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        answers = {path: await client.get(path) for path in page_paths}

    assert len(answers) >= 9
    assert {path: (answer.status_code, answer.headers["location"]) for path, answer in answers.items()} == {
        path: (303, f"/sign-in?next={quote(path, safe='')}") for path in page_paths
    }


async def test_every_form_without_its_token_is_refused_and_leads_back_to_its_page(byline: PageServer) -> None:
    form_paths = await list_page_paths(byline, "POST")
    page_paths = {*await list_page_paths(byline, "GET")}
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        answers = {path: await client.post(path, data={"csrf_token": "guessed"}) for path in form_paths}

    assert len(answers) >= 12
    assert {answer.status_code for answer in answers.values()} == {403}
    assert all("Nothing was changed." in answer.text for answer in answers.values())
    links = {answer.text.split('<a href="')[-1].split('"')[0] for answer in answers.values()}
    assert links <= page_paths
