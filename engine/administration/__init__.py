"""What an administrator does to people, roles, services, secrets and keys, each use case once, with its audit event."""
