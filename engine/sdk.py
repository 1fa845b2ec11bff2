"""All names that a tool imports from Byline. Everything else in a tool is ordinary Temporal code."""

from engine.actions import action, upstream
from engine.changes.telling import changed
from engine.content import Audio, Content, Document, Embedded, Image, Link, Message, Messages, Text
from engine.offers import Icon, prompt, resource, tool
from engine.progress import progress
from engine.questions.asking import Person, approval, ask
from engine.questions.clients import Root, roots, sample

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
