"""Escapes untrusted text, so that it cannot move a terminal's cursor, begin a line or run backwards."""


def escape_text(untrusted_text: object) -> str:
    """Return the text on one line, with each character that cannot be printed as its escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(untrusted_text)
    )
