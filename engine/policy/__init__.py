"""Who may call which tool, as an administrator decided."""
