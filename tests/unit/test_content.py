"""Holds what offers give to the JSON that MCP puts on the wire, in which it survives a passage through a workflow."""

from typing import Any

import pytest
from mcp_types import CallToolResult, GetPromptResult
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from engine.sdk import Audio, Content, Document, Embedded, Image, Link, Message, Messages, Text

BYTES = bytes(range(256))
BLOCKS: list[Any] = [
    Text("Look:"),
    Image(BYTES, "image/png"),
    Audio(BYTES, "audio/wav"),
    Embedded(uri="crm://accounts/1", text="{}", mime_type="application/json"),
    Embedded(uri="crm://logos/1", blob=BYTES),
    Link("crm://accounts/2", "account", title="Contoso"),
]


def test_blocks_are_what_mcp_calls_content() -> None:
    document = from_json(to_json(Content(BLOCKS)))

    read = CallToolResult.model_validate(document)
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True)["content"] == document["content"]
    assert [block["type"] for block in document["content"]] == [
        *("text", "image", "audio", "resource", "resource", "resource_link")
    ]


def test_messages_are_what_mcp_calls_a_prompts_result() -> None:
    document = from_json(to_json(Messages([Message("user", block) for block in BLOCKS])))

    read = GetPromptResult.model_validate(document)
    assert read.model_dump(mode="json", by_alias=True, exclude_none=True)["messages"] == document["messages"]


@pytest.mark.parametrize(
    "value", [Content(BLOCKS), Messages([Message("assistant", BLOCKS[3])]), Document(blob=BYTES)]
)
def test_what_a_child_gives_is_the_same_in_its_parent(value: Any) -> None:
    assert TypeAdapter(type(value)).validate_json(to_json(value)) == value


def test_a_document_holds_text_or_bytes_and_never_both() -> None:
    assert from_json(to_json(Document("text", mime_type="text/plain"))) == {
        "text": "text",
        "mimeType": "text/plain",
    }
    with pytest.raises(ValidationError, match="either text or blob"):
        Document()
    with pytest.raises(ValidationError, match="either text or blob"):
        Document("text", blob=b"bytes")
