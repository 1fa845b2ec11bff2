"""The core of Byline: identity, waits, the vault, grants and the audit trail. It serves no HTTP."""
