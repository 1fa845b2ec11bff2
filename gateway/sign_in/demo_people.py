"""The demo people of the built-in sign-in. They are added only where settings ask for them."""

from typing import Final, NamedTuple


class DemoPerson(NamedTuple):
    """A person to try the product as."""

    username: str
    name: str
    password: str


DEMO_PEOPLE: Final = (
    DemoPerson("alice", "Alice Liddell", "alice-demo"),
    DemoPerson("bob", "Bob Baker", "bob-demo"),
)
