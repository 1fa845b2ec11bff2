"""The stack of `temporal-dev.yml` as processes of this machine."""
