"""All that a builder imports from Byline; everything else in a tool is ordinary Temporal."""

from engine.actions import action, upstream
from engine.tools import tool

__all__ = ["action", "tool", "upstream"]
