"""The steps that a person takes to sign in, which pages render without knowing the way."""

from dataclasses import dataclass
from typing import Literal

StepKind = Literal["redirect", "code", "form"]


@dataclass(frozen=True, slots=True)
class RedirectStep:
    """The person's browser goes to this URL, and comes back to the redirect URI."""

    url: str


@dataclass(frozen=True, slots=True)
class CodeStep:
    """The person types a code at an address, on this or another device, while the page looks again and again."""

    user_code: str
    address: str
    address_with_code: str | None
    poll_again_seconds: int


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of a form. What is typed into a secret one is not shown."""

    name: str
    label: str
    is_secret: bool


@dataclass(frozen=True, slots=True)
class FormStep:
    """The person fills in a form. `made_at` is the page of the upstream on which they create what they type."""

    fields: tuple[FormField, ...]
    made_at: str | None


SignInStep = RedirectStep | CodeStep | FormStep
