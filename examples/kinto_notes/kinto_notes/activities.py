"""Actions on Kinto through its HTTP API, version 1."""

from typing import Any

from pydantic import BaseModel

from byline import action, upstream


class Record(BaseModel):
    """A record with its name, `bucket/collection/id`, and its data."""

    name: str
    data: dict[str, Any]


@action("kinto.read_record", connection="kinto", reads_only=True)
async def read_record(name: str) -> Record:
    """Read one record."""
    answer = await upstream().get(_path(name), record=f"record/{name}")
    return Record(name=name, data=answer.json()["data"])


@action("kinto.change_record", connection="kinto")
async def change_record(changes: Record) -> Record:
    """Set these fields of a record and leave its others unchanged. A second call changes nothing more."""
    answer = await upstream().request(
        "PATCH",
        _path(changes.name),
        record=f"record/{changes.name}",
        idempotent=True,
        json={"data": changes.data},
    )
    return Record(name=changes.name, data=answer.json()["data"])


def _path(name: str) -> str:
    bucket, collection, record = name.split("/")
    return f"/buckets/{bucket}/collections/{collection}/records/{record}"
