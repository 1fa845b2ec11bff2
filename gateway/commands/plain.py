"""Escapes untrusted text, so that it cannot move a terminal's cursor, begin a line or run backwards."""


def plain(text: object) -> str:
    """Return the text on one line, with each character that cannot be printed as its escape."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )
