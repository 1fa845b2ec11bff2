"""The paths of the pages on which people answer, which links in notes and in chats lead to; it shows none of them."""


def connect_path(request_id: str) -> str:
    """Where an authorization request is answered."""
    return f"/connect/{request_id}"


def tool_path(tool: str) -> str:
    """Where a person connects all that a tool needs, before they call it."""
    return f"/connect/tools/{tool}"


def question_path(question_id: str) -> str:
    """Where a question is answered, or an approval given."""
    return f"/questions/{question_id}"
