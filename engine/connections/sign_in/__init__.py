"""The ways in which Byline comes to a connection's tokens, one a file."""
