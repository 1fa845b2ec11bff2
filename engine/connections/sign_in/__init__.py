"""The sign-in methods by which Byline obtains a connection's tokens, one per file."""
