"""Text of strangers for a terminal: what would move the cursor, begin a line or run backwards is shown, not obeyed."""


def plain(text: object) -> str:
    """The text on one line, each character that cannot be printed as its escape."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )
