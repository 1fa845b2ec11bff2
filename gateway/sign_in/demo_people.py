"""The people that the built-in sign-in knows where settings ask for demo people; nobody is made from this otherwise."""

from typing import Final, NamedTuple


class DemoPerson(NamedTuple):
    """Somebody to try the stack as."""

    username: str
    name: str
    password: str


DEMO_PEOPLE: Final = (
    DemoPerson("alice", "Alice Liddell", "alice-demo"),
    DemoPerson("bob", "Bob Baker", "bob-demo"),
)
