"""Builds the URL paths of the pages on which people answer, for links in notes and in chats."""


def build_connect_path(request_id: str) -> str:
    """Return the path of the page that answers an authorization request."""
    return f"/connect/{request_id}"


def build_tool_path(tool_name: str) -> str:
    """Return the path of the page on which a person connects everything a tool needs before they call it."""
    return f"/connect/tools/{tool_name}"


def build_question_path(question_id: str) -> str:
    """Return the path of the page that answers a question or gives an approval."""
    return f"/questions/{question_id}"
