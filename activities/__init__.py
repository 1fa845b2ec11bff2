"""Actions on upstream systems, one system a file; nothing here knows a token, a link or a wait."""
