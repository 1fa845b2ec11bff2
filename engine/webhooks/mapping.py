"""Maps a delivery to a tool's arguments, by JSON pointers into its body (RFC 6901) and constants. It runs no code."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from jsonpointer import EndOfList, JsonPointer, JsonPointerException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json

from engine.errors import DeliveryUnfit, WebhookInvalid

_NOTHING: Final = object()
_LONGEST_ID = 255


def _pointing(text: str) -> str:
    try:
        JsonPointer(text)
    except JsonPointerException as error:
        raise ValueError(
            "not a JSON pointer: write the steps down to a value, each after a slash, as in /data/object/id"
        ) from error
    return text


def _storable(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("a value that JSON has no words for") from error
    return value


Pointer = Annotated[
    str,
    Field(
        max_length=500,
        description="A JSON pointer (RFC 6901) into the delivery's body.",
        json_schema_extra={"pattern": "^(/([^/~]|~[01])*)*$"},
    ),
    AfterValidator(_pointing),
    AfterValidator(_storable),
]
Value = Annotated[JsonValue, AfterValidator(_storable)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FromBody(_Declared):
    """An argument that is read from the body; a delivery without a value there is refused."""

    pointer: Pointer


class FromBodyOrDefault(FromBody):
    """An argument that is read from the body where the body has a value there."""

    default: Value = Field(description="What to take where the body has nothing there.")


class Constant(_Declared):
    """An argument that is always the same."""

    constant: Value


Source = FromBody | FromBodyOrDefault | Constant


class Condition(_Declared):
    """What the body of a delivery has to hold; any other delivery is accepted and ignored."""

    pointer: Pointer
    equals: list[Value] = Field(min_length=1, description="The value there is one of these.")


class DeliveryMapping(_Declared):
    """How a delivery becomes a call of a tool."""

    arguments: dict[str, Source] = Field(description="Where each argument of the tool comes from.")
    conditions: list[Condition] = Field(default=[], description="All of these have to hold.")
    event_id: Pointer | None = Field(
        default=None,
        description="Where the body names the event, if not where the scheme's senders do: an event is served once.",
    )

    def require_fit(self, schema: Mapping[str, Any], input_type: TypeAdapter[Any] | None) -> None:
        """Check that calls by this mapping can fit a tool's input; raises WebhookInvalid that says what does not."""
        known, required = schema.get("properties", {}), schema.get("required", [])
        problems = [f"the tool has no argument '{name}'" for name in self.arguments if name not in known]
        problems += [
            f"the argument '{name}' comes from nowhere" for name in required if name not in self.arguments
        ]
        if not problems and input_type is not None:
            problems = _unfit(self._certain(), input_type)
        if problems:
            raise WebhookInvalid(f"The mapping does not fit the tool: {'; '.join(problems)}.")

    def is_meant(self, body: object) -> bool:
        """Whether every condition holds."""
        return all(
            any(_same(found, value) for value in condition.equals)
            for condition in self.conditions
            for found in [_find(body, condition.pointer)]
        )

    def call(self, body: object) -> dict[str, Any]:
        """Return the arguments for the tool; raises DeliveryUnfit that names each pointer that found nothing."""
        arguments = {name: _argument(source, body) for name, source in self.arguments.items()}
        empty = [
            f"nothing at {source.pointer or 'the root'} for '{name}'"
            for name, source in self.arguments.items()
            if isinstance(source, FromBody) and arguments[name] is _NOTHING
        ]
        if empty:
            raise DeliveryUnfit(
                f"The body does not have what the webhook's mapping looks for: {'; '.join(empty)}."
            )
        return arguments

    def _certain(self) -> dict[str, Any]:
        """Return the arguments that are known without a delivery: constants and defaults."""
        certain: dict[str, Any] = {}
        for name, source in self.arguments.items():
            match source:
                case Constant(constant=value) | FromBodyOrDefault(default=value):
                    certain[name] = value
                case FromBody():
                    pass
        return certain


def read_body(body: bytes) -> object:
    """Parse the JSON of a delivery; raises DeliveryUnfit for other content, or for JSON that is nested too deeply."""
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError:
        document = None
    if not isinstance(document, dict | list):
        raise DeliveryUnfit("The body is not a JSON object. Have the sender deliver as application/json.")
    return document


def event_id_at(body: object, pointer: str) -> str:
    """Return the event's id in the body; raises DeliveryUnfit."""
    found = _find(body, pointer)
    name = str(found) if isinstance(found, int) and not isinstance(found, bool) else found
    if not isinstance(name, str):
        raise DeliveryUnfit(
            f"The body names no event: nothing at {pointer or 'the root'} that could be its id."
        )
    return event_id(name)


def event_id(name: str) -> str:
    """Return the event's id if it can be stored; raises DeliveryUnfit."""
    if not 0 < len(name) <= _LONGEST_ID or not name.isprintable():
        raise DeliveryUnfit(f"The event's id is not 1 to {_LONGEST_ID} printable characters.")
    return name


def _argument(source: Source, body: object) -> Any:
    match source:
        case Constant():
            return source.constant
        case FromBodyOrDefault():
            found = _find(body, source.pointer)
            return source.default if found is _NOTHING else found
        case FromBody():
            return _find(body, source.pointer)


def _find(body: object, pointer: str) -> object:
    found = JsonPointer(pointer).resolve(body, _NOTHING)
    # `-` is the place after an array's last item, where nothing can be yet.
    return _NOTHING if isinstance(found, EndOfList) else found


def _same(found: object, value: JsonValue) -> bool:
    # In Python, true equals 1.
    return isinstance(found, bool) == isinstance(value, bool) and found == value


def _unfit(certain: dict[str, Any], input_type: TypeAdapter[Any]) -> list[str]:
    try:
        input_type.validate_json(json.dumps(certain), strict=True)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
            if problem["loc"] and problem["loc"][0] in certain
        ]
    return []
