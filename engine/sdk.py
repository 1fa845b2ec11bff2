"""All names that a tool imports from Byline. Everything else in a tool is ordinary Temporal code."""

from engine.actions.current_upstream import upstream
from engine.actions.definition import action
from engine.questions.ask_clients import Root, roots, sample
from engine.questions.ask_people import Person, approval, ask
from engine.tools.announce_changes import changed
from engine.tools.content import Audio, Content, Document, Embedded, Image, Link, Message, Messages, Text
from engine.tools.offers import Icon, prompt, resource, tool
from engine.tools.progress import progress

__all__ = [
    "Audio",
    "Content",
    "Document",
    "Embedded",
    "Icon",
    "Image",
    "Link",
    "Message",
    "Messages",
    "Person",
    "Root",
    "Text",
    "action",
    "approval",
    "ask",
    "changed",
    "progress",
    "prompt",
    "resource",
    "roots",
    "sample",
    "tool",
    "upstream",
]
