"""Builds the paths and the links of the pages on which people act, for notes, chats and pages."""

from dataclasses import dataclass


def build_connect_path(request_id: str) -> str:
    """Return the path of the page that answers an authorization request."""
    return f"/connect/{request_id}"


def build_tool_path(tool_name: str) -> str:
    """Return the path of the page on which a person connects everything a tool needs before they call it."""
    return f"/connect/tools/{tool_name}"


def build_question_path(question_id: str) -> str:
    """Return the path of the page that answers a question or gives an approval."""
    return f"/questions/{question_id}"


@dataclass(frozen=True, slots=True)
class PageLinks:
    """Builds the links of pages below the gateway's own URL. Each page opens only for the people it is for."""

    public_url: str

    def build_connect_link(self, request_id: str) -> str:
        """Return the link of the page that answers an authorization request."""
        return f"{self.public_url}{build_connect_path(request_id)}"

    def build_tool_link(self, tool_name: str) -> str:
        """Return the link of the page on which a person connects everything a tool needs."""
        return f"{self.public_url}{build_tool_path(tool_name)}"

    def build_question_link(self, question_id: str) -> str:
        """Return the link of the page that answers a question or gives an approval."""
        return f"{self.public_url}{build_question_path(question_id)}"

    def build_notifications_link(self) -> str:
        """Return the link of the page on which people choose where they are notified."""
        return f"{self.public_url}/notifications"
