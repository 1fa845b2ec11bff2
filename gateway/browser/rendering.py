"""Render pages from templates: one layout, escaped, without scripts, and with headers that forbid framing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.errors import BylineError
from gateway.browser.sessions import BrowserSession
from gateway.error_codes import to_http_status

_BROWSER_FOLDER = Path(__file__).parent
_TEMPLATE_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_BROWSER_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class PageProblem:
    """Why a page is rendered again: the words for its person, and the HTTP status of the response."""

    text: str
    status_code: int

    @classmethod
    def from_error(cls, error: BylineError) -> Self:
        """Return the problem that an error is for the person whose form led to it."""
        return cls(str(error), to_http_status(error))


def render_page(
    template_name: str,
    *,
    page_title: str,
    browser_session: BrowserSession | None = None,
    page_problem: PageProblem | None = None,
    status_code: int = 200,
    may_leave_site: bool = False,
    **template_values: Any,
) -> HTMLResponse:
    """Render a page from a template, with a problem and its status where there is one.

    `may_leave_site` says that submitting its form can redirect to another site.
    """
    # Browsers apply form-action to every redirect that follows a submission. Where a provider or a client
    # redirects next is unknown, so a page whose form may leave this site has no form-action.
    content_security_policy = (
        _CONTENT_SECURITY_POLICY if may_leave_site else f"{_CONTENT_SECURITY_POLICY}; form-action 'self'"
    )
    if page_problem is not None:
        status_code = page_problem.status_code
    common_values = {
        "title": page_title,
        "session": browser_session,
        "problem": None if page_problem is None else page_problem.text,
    }
    page_html = _TEMPLATE_ENVIRONMENT.get_template(template_name).render(common_values | template_values)
    return HTMLResponse(
        page_html, status_code, {**_SECURITY_HEADERS, "Content-Security-Policy": content_security_policy}
    )


def render_notice(
    page_title: str,
    notice_text: str,
    *,
    status_code: int,
    browser_session: BrowserSession | None = None,
    next_link: tuple[str, str] | None = None,
) -> HTMLResponse:
    """Render a page with one message and at most one link, given as an address and its text."""
    return render_page(
        "notice.html",
        page_title=page_title,
        text=notice_text,
        link=next_link,
        browser_session=browser_session,
        status_code=status_code,
    )


def redirect_see_other(target_url: str) -> RedirectResponse:
    """Redirect the browser with 303 See Other (RFC 9110 section 15.4.4), without caching and without a referrer."""
    return RedirectResponse(target_url, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def render_stale_form(page_link: str) -> HTMLResponse:
    """Render the page for a form with a wrong CSRF token: it was forged by another site, or comes from an old tab."""
    notice_text = (
        "The page you came from is too old, or your browser did not send its cookie. Nothing was changed."
    )
    return render_notice(
        "Please try again", notice_text, status_code=403, next_link=(page_link, "Open the page again")
    )


def render_not_found(status_code: int) -> HTMLResponse:
    """Render the page for an address that does not exist, or that does not accept the request's method."""
    notice_text = "The address may be mistyped, or what was here is gone."
    return render_notice(
        "There is no such page", notice_text, status_code=status_code, next_link=("/", "Go to the front page")
    )


def create_assets_router() -> APIRouter:
    """Create the route of the style sheet that every page links to."""
    assets_router = APIRouter(include_in_schema=False)
    assets_router.add_api_route("/static/byline.css", _send_style_sheet, methods=["GET"])
    return assets_router


async def _send_style_sheet() -> FileResponse:
    response_headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(
        _BROWSER_FOLDER / "static" / "byline.css", media_type="text/css", headers=response_headers
    )
