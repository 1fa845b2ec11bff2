"""The ways to sign in to an upstream, one file each, and what they have in common."""
