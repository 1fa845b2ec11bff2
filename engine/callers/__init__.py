"""Callers that do not sign in each time: personal API tokens, and the services that an administrator adds."""
