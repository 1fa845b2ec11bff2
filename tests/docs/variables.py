"""Every environment variable that any settings understand, with its default as the documentation writes it."""

import json
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from engine.settings import Settings
from gateway.client.settings import ClientSettings


def _group(field: FieldInfo) -> type[BaseModel] | None:
    if get_origin(field.annotation) is tuple:
        return None
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _variables(model: type[BaseModel], prefix: str) -> dict[str, str]:
    default_by_variable: dict[str, str] = {}
    for name, field in model.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        group = _group(field)
        default_by_variable |= (
            {variable: _format_default(field)} if group is None else _variables(group, f"{variable}__")
        )
    return default_by_variable


def _format_default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return "–"
    plain: Any = to_jsonable_python(field.default)
    return f"`{plain if isinstance(plain, str) else json.dumps(plain, separators=(',', ':'))}`"


VARIABLES = _variables(Settings, "BYLINE_") | _variables(ClientSettings, "BYLINE_")
