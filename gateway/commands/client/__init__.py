"""Commands that call a gateway as the person who signed in."""
