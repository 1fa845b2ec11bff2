"""Who calls without signing in each time: personal API tokens, and the services that an administrator makes known."""
