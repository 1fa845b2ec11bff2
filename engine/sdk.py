"""All that a builder imports from Byline; everything else in a tool is ordinary Temporal."""

from engine.actions import action, upstream
from engine.progress import progress
from engine.questions.asking import Person, approval, ask
from engine.tools import tool

__all__ = ["Person", "action", "approval", "ask", "progress", "tool", "upstream"]
