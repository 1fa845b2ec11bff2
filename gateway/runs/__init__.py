"""Starts, awaits, shows and controls runs, for MCP, REST and webhooks alike."""
