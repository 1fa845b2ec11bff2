"""What offers give beyond plain objects, in the JSON that MCP puts on the wire; safe to import from workflow code."""

import base64
from dataclasses import field
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

_WIRE: Final = ConfigDict(
    alias_generator=to_camel,
    validate_by_name=True,
    validate_by_alias=True,
    serialize_by_alias=True,
    extra="forbid",
)


def _decoded(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Bytes = Annotated[
    bytes, BeforeValidator(_decoded), PlainSerializer(_encoded, return_type=str, when_used="json")
]
"""Bytes, which JSON holds in base64."""


@dataclass(config=_WIRE, frozen=True)
class Text:
    """Text."""

    text: str
    type: Literal["text"] = field(default="text", kw_only=True)


@dataclass(config=_WIRE, frozen=True)
class Image:
    """An image, as `image/png` or the like."""

    data: Bytes
    mime_type: str
    type: Literal["image"] = field(default="image", kw_only=True)


@dataclass(config=_WIRE, frozen=True)
class Audio:
    """Sound, as `audio/wav` or the like."""

    data: Bytes
    mime_type: str
    type: Literal["audio"] = field(default="audio", kw_only=True)


@dataclass(config=_WIRE, frozen=True)
class Link:
    """The address of a resource, for the client to read where it wants to."""

    uri: str
    name: str
    title: str | None = field(default=None, kw_only=True)
    description: str | None = field(default=None, kw_only=True)
    mime_type: str | None = field(default=None, kw_only=True)
    type: Literal["resource_link"] = field(default="resource_link", kw_only=True)

    @model_serializer(mode="wrap")
    def _shown(self, shown: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _given(shown(self))


@dataclass(config=_WIRE, frozen=True)
class Document:
    """What a resource holds: text or bytes. Without `mime_type` it has the one that the resource declares."""

    text: str | None = None
    blob: Bytes | None = None
    mime_type: str | None = None

    @model_validator(mode="after")
    def _holds_one(self) -> "Document":
        if (self.text is None) == (self.blob is None):
            raise ValueError("A document holds either text or blob.")
        return self

    @model_serializer(mode="wrap")
    def _shown(self, shown: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _given(shown(self))


@dataclass(config=_WIRE, frozen=True)
class Embedded(Document):
    """A document within a result, with the address that it has as a resource."""

    uri: str = field(kw_only=True)
    type: Literal["resource"] = field(default="resource", kw_only=True)

    @model_validator(mode="before")
    @classmethod
    def _unwrapped(cls, given: Any) -> Any:
        return given["resource"] if isinstance(given, dict) and "resource" in given else given

    @model_serializer(mode="wrap")
    def _shown(self, shown: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document = _given(shown(self))
        return {"type": document.pop("type"), "resource": document}


Block = Annotated[Text | Image | Audio | Link | Embedded, Field(discriminator="type")]


@dataclass(config=_WIRE, frozen=True)
class Content:
    """What a tool gives where that is no object: blocks for the model to read."""

    content: list[Block]


@dataclass(config=_WIRE, frozen=True)
class Message:
    """What one side says in a conversation."""

    role: Literal["user", "assistant"]
    content: Block


@dataclass(config=_WIRE, frozen=True)
class Messages:
    """What a prompt gives: the conversation to go on from."""

    messages: list[Message]


def _given(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if value is not None}
