"""What makes Byline Byline: identity, the wait, the vault and the trail; it serves no HTTP."""
