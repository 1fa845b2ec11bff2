"""The content types that tools, prompts and resources return, in MCP's JSON. Workflow code may import this module."""

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

_WIRE_CONFIG: Final = ConfigDict(
    alias_generator=to_camel,
    validate_by_name=True,
    validate_by_alias=True,
    serialize_by_alias=True,
    extra="forbid",
)


def _decode_base64(raw_value: Any) -> Any:
    return base64.b64decode(raw_value, validate=True) if isinstance(raw_value, str) else raw_value


def _encode_base64(raw_bytes: bytes) -> str:
    return base64.b64encode(raw_bytes).decode("ascii")


Base64Bytes = Annotated[
    bytes, BeforeValidator(_decode_base64), PlainSerializer(_encode_base64, return_type=str, when_used="json")
]
"""Bytes that are written as base64 in JSON."""


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Text:
    """A text block."""

    text: str
    type: Literal["text"] = field(default="text", kw_only=True)


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Image:
    """An image block; `mime_type` is `image/png` or similar."""

    data: Base64Bytes
    mime_type: str
    type: Literal["image"] = field(default="image", kw_only=True)


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Audio:
    """An audio block; `mime_type` is `audio/wav` or similar."""

    data: Base64Bytes
    mime_type: str
    type: Literal["audio"] = field(default="audio", kw_only=True)


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Link:
    """A link to a resource, which the client may read."""

    uri: str
    name: str
    title: str | None = field(default=None, kw_only=True)
    description: str | None = field(default=None, kw_only=True)
    mime_type: str | None = field(default=None, kw_only=True)
    type: Literal["resource_link"] = field(default="resource_link", kw_only=True)

    @model_serializer(mode="wrap")
    def _serialize_fields(self, default_serializer: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _drop_nulls(default_serializer(self))


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Document:
    """The contents of a resource: text or bytes. `mime_type` defaults to the one that the resource declares."""

    text: str | None = None
    blob: Base64Bytes | None = None
    mime_type: str | None = None

    @model_validator(mode="after")
    def _check_one_form(self) -> "Document":
        if (self.text is None) == (self.blob is None):
            raise ValueError("A document holds either text or blob.")
        return self

    @model_serializer(mode="wrap")
    def _serialize_fields(self, default_serializer: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _drop_nulls(default_serializer(self))


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Embedded(Document):
    """A document that is embedded in a result, with the URI that it has as a resource."""

    uri: str = field(kw_only=True)
    type: Literal["resource"] = field(default="resource", kw_only=True)

    @model_validator(mode="before")
    @classmethod
    def _unwrap_resource(cls, raw_document: Any) -> Any:
        return (
            raw_document["resource"]
            if isinstance(raw_document, dict) and "resource" in raw_document
            else raw_document
        )

    @model_serializer(mode="wrap")
    def _serialize_fields(self, default_serializer: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document_fields = _drop_nulls(default_serializer(self))
        return {"type": document_fields.pop("type"), "resource": document_fields}


ContentBlock = Annotated[Text | Image | Audio | Link | Embedded, Field(discriminator="type")]


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Content:
    """The result of a tool that returns content blocks for the model instead of an object."""

    content: list[ContentBlock]


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Message:
    """One message of a conversation, by the user or the assistant."""

    role: Literal["user", "assistant"]
    content: ContentBlock


@dataclass(config=_WIRE_CONFIG, frozen=True)
class Messages:
    """The result of a prompt: the conversation that the client continues."""

    messages: list[Message]


def _drop_nulls(serialized_fields: dict[str, Any]) -> dict[str, Any]:
    return {
        field_name: field_value
        for field_name, field_value in serialized_fields.items()
        if field_value is not None
    }
