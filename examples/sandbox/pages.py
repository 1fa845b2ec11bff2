"""The three pages of a system: sign-in, consent and error. They are forms without scripts."""

from collections.abc import Mapping
from html import escape

from fastapi.responses import HTMLResponse

from examples.sandbox.people import SandboxPerson
from examples.sandbox.sessions import Session

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = """
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 30rem; margin: 3rem auto; padding: 0 1rem; }
label { display: block; margin-top: 1rem; } input { font: inherit; width: 100%; box-sizing: border-box; }
button { font: inherit; padding: .4rem 1.2rem; margin: 1.5rem .5rem 0 0; }
"""


def sign_in(system: str, session: Session, problem: str | None = None) -> HTMLResponse:
    """Build the sign-in page."""
    notice = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    form = f"""{notice}<form method="post">
<input type="hidden" name="form_token" value="{session.form_token}">
<label for="username">Account name</label>
<input id="username" name="username" autocomplete="username" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button name="decision" value="sign-in">Sign in</button>
</form>"""
    return _page(f"Sign in to {system}", form, status=400 if problem else 200)


def consent(
    system: str, session: Session, person: SandboxPerson, client: str, scopes: Mapping[str, str]
) -> HTMLResponse:
    """Build the page that asks for consent to these scopes, each with its meaning."""
    scope_items = "".join(
        f"<li>{escape(meaning)} (<code>{escape(scope)}</code>)</li>" for scope, meaning in scopes.items()
    )
    form = f"""<p>You are signed in as <strong>{escape(person.username)}</strong> ({escape(person.name)}).</p>
<p><strong>{escape(client)}</strong> asks for your permission to:</p>
<ul>{scope_items}</ul>
<form method="post">
<input type="hidden" name="form_token" value="{session.form_token}">
<button name="decision" value="allow">Allow</button>
<button name="decision" value="deny">Deny</button>
<button name="decision" value="switch">Use another account</button>
</form>"""
    return _page(f"Allow {client} to use {system}?", form)


def error(system: str, message: str) -> HTMLResponse:
    """Build the page that says why the person cannot be sent back to the client."""
    return _page(f"{system} cannot continue", f'<p role="alert">{escape(message)}</p>', status=400)


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    html = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"""
    return HTMLResponse(html, status, _HEADERS)
