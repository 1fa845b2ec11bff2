"""Maps a delivery to a tool's arguments, by JSON pointers into its body (RFC 6901) and constants. It runs no code."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from jsonpointer import EndOfList, JsonPointer, JsonPointerException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json

from engine.errors import DeliveryUnfit, WebhookInvalid
from engine.validation_errors import describe_problem

_MISSING_VALUE: Final = object()
_MAX_EVENT_ID_CHARS = 255


def _validate_pointer(pointer_text: str) -> str:
    try:
        JsonPointer(pointer_text)
    except JsonPointerException as error:
        raise ValueError(
            "not a JSON pointer: write the steps down to a value, each after a slash, as in /data/object/id"
        ) from error
    return pointer_text


def _validate_storable(json_value: JsonValue) -> JsonValue:
    try:
        json.dumps(json_value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("a value that JSON has no words for") from error
    return json_value


JsonPointerText = Annotated[
    str,
    Field(
        max_length=500,
        description="A JSON pointer (RFC 6901) into the delivery's body.",
        json_schema_extra={"pattern": "^(/([^/~]|~[01])*)*$"},
    ),
    AfterValidator(_validate_pointer),
    AfterValidator(_validate_storable),
]
StorableJson = Annotated[JsonValue, AfterValidator(_validate_storable)]


class _DeclaredModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FromBody(_DeclaredModel):
    """An argument that is read from the body; a delivery without a value there is refused."""

    pointer: JsonPointerText


class FromBodyOrDefault(FromBody):
    """An argument that is read from the body where the body has a value there."""

    default: StorableJson = Field(description="The value to use if the body has none there.")


class Constant(_DeclaredModel):
    """An argument that is always the same."""

    constant: StorableJson


ArgumentSource = FromBody | FromBodyOrDefault | Constant


class Condition(_DeclaredModel):
    """What the body of a delivery has to hold; any other delivery is accepted and ignored."""

    pointer: JsonPointerText
    equals: list[StorableJson] = Field(min_length=1, description="The values that are accepted there.")


class DeliveryMapping(_DeclaredModel):
    """How a delivery becomes a call of a tool."""

    arguments: dict[str, ArgumentSource] = Field(description="The source of each argument of the tool.")
    conditions: list[Condition] = Field(default=[], description="The conditions, all of which have to hold.")
    event_id: JsonPointerText | None = Field(
        default=None,
        description="Where the body has the event's id, if the scheme does not say. Each event starts one run.",
    )

    def require_tool_fit(self, input_schema: Mapping[str, Any], input_type: TypeAdapter[Any] | None) -> None:
        """Check that calls by this mapping can fit a tool's input; raises WebhookInvalid that says what does not."""
        properties, required_names = input_schema.get("properties", {}), input_schema.get("required", [])
        problems = [
            f"the tool has no argument '{argument_name}'"
            for argument_name in self.arguments
            if argument_name not in properties
        ]
        problems += [
            f"the argument '{argument_name}' comes from nowhere"
            for argument_name in required_names
            if argument_name not in self.arguments
        ]
        if not problems and input_type is not None:
            problems = _find_misfits(self._collect_certain_arguments(), input_type)
        if problems:
            raise WebhookInvalid(f"The mapping does not fit the tool: {'; '.join(problems)}.")

    def is_matched_by(self, json_document: object) -> bool:
        """Whether every condition holds."""
        return all(
            any(_is_same_json(found_value, allowed_value) for allowed_value in condition.equals)
            for condition in self.conditions
            for found_value in [_resolve_pointer(json_document, condition.pointer)]
        )

    def build_arguments(self, json_document: object) -> dict[str, Any]:
        """Return the arguments for the tool; raises DeliveryUnfit that names each pointer that found nothing."""
        tool_arguments = {
            argument_name: _resolve_argument(argument_source, json_document)
            for argument_name, argument_source in self.arguments.items()
        }
        missing_values = [
            f"nothing at {argument_source.pointer or 'the root'} for '{argument_name}'"
            for argument_name, argument_source in self.arguments.items()
            if isinstance(argument_source, FromBody) and tool_arguments[argument_name] is _MISSING_VALUE
        ]
        if missing_values:
            raise DeliveryUnfit(
                f"The body does not have what the webhook's mapping looks for: {'; '.join(missing_values)}."
            )
        return tool_arguments

    def _collect_certain_arguments(self) -> dict[str, Any]:
        """Return the arguments that are known without a delivery: constants and defaults."""
        certain_arguments: dict[str, Any] = {}
        for argument_name, argument_source in self.arguments.items():
            match argument_source:
                case Constant(constant=argument_value) | FromBodyOrDefault(default=argument_value):
                    certain_arguments[argument_name] = argument_value
                case FromBody():
                    pass
        return certain_arguments


def parse_delivery_body(raw_body: bytes) -> object:
    """Parse the JSON of a delivery; raises DeliveryUnfit for other content, or for JSON that is nested too deeply."""
    try:
        json_document = from_json(raw_body, allow_inf_nan=False)
    except ValueError:
        json_document = None
    if not isinstance(json_document, dict | list):
        raise DeliveryUnfit("The body is not a JSON object. Have the sender deliver as application/json.")
    return json_document


def read_event_id(json_document: object, pointer: str) -> str:
    """Return the event's id in the body; raises DeliveryUnfit."""
    found_value = _resolve_pointer(json_document, pointer)
    event_id = (
        str(found_value)
        if isinstance(found_value, int) and not isinstance(found_value, bool)
        else found_value
    )
    if not isinstance(event_id, str):
        raise DeliveryUnfit(
            f"The body names no event: nothing at {pointer or 'the root'} that could be its id."
        )
    return require_event_id(event_id)


def require_event_id(event_id: str) -> str:
    """Return the event's id if it can be stored; raises DeliveryUnfit."""
    if not 0 < len(event_id) <= _MAX_EVENT_ID_CHARS or not event_id.isprintable():
        raise DeliveryUnfit(f"The event's id is not 1 to {_MAX_EVENT_ID_CHARS} printable characters.")
    return event_id


def _resolve_argument(argument_source: ArgumentSource, json_document: object) -> Any:
    match argument_source:
        case Constant():
            return argument_source.constant
        case FromBodyOrDefault():
            found_value = _resolve_pointer(json_document, argument_source.pointer)
            return argument_source.default if found_value is _MISSING_VALUE else found_value
        case FromBody():
            return _resolve_pointer(json_document, argument_source.pointer)


def _resolve_pointer(json_document: object, pointer: str) -> object:
    found_value = JsonPointer(pointer).resolve(json_document, _MISSING_VALUE)
    # `-` is the place after an array's last item, where nothing can be yet.
    return _MISSING_VALUE if isinstance(found_value, EndOfList) else found_value


def _is_same_json(found_value: object, allowed_value: JsonValue) -> bool:
    # In Python, true equals 1.
    return isinstance(found_value, bool) == isinstance(allowed_value, bool) and found_value == allowed_value


def _find_misfits(certain_arguments: dict[str, Any], input_type: TypeAdapter[Any]) -> list[str]:
    try:
        input_type.validate_json(json.dumps(certain_arguments), strict=True)
    except ValidationError as error:
        return [
            describe_problem(problem)
            for problem in error.errors(include_url=False, include_input=False)
            if problem["loc"] and problem["loc"][0] in certain_arguments
        ]
    return []
