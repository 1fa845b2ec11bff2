"""The MCP door: lists what each caller may use, starts a run for each call and reports it as its client can show it."""
