"""Identity: principals, actors and roles, and the signed statement that binds them to a run."""
