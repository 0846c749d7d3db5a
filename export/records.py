"""Frozen dataclasses as JSON objects, and back: the types of the fields are all that is said.

    @dataclass(frozen=True, kw_only=True)
    class Entry:
        bytes: Annotated[int, Kind("a whole number", …)]
        made_by: str | None = None

    read_record(Entry, {"bytes": 3})      # Entry(bytes=3, made_by=None)
    to_json(Entry(bytes=3))               # {"bytes": 3}
    read_record(Entry, {"bytes": "3"})    # raises Misfit: '3' at "bytes", expected a whole number

A field is text, a value that a ``Kind`` accepts, another such dataclass, or a ``dict[str, …]`` or
``tuple[…, ...]`` of these. One with a default may be left out, and is where it is None; null is
nothing that a field may hold. Names that are no fields are passed over. Standard library only.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
Reader = Callable[[Any], Any]  # makes of a JSON value what a field holds, or raises Misfit

NOTHING = object()  # stands for a value that must be there and is not


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be, in words and as a question."""

    expected: str
    accepts: Callable[[Any], bool]


TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))


class Misfit(Exception):
    """A JSON value that is not of its kind: ``found`` under the names of ``place``, or NOTHING."""

    def __init__(self, found: Any, expected: str) -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected
        self.place: list[str] = []  # grows at the front on the way out of the value


def read_record(record: type[Record], value: Any) -> Record:
    """The dataclass of a JSON value; raises Misfit at the first that is not of its kind."""
    kind: Any = record
    made: Record = _reader(kind)(value)
    return made


def to_json(value: Any) -> Any:
    """The JSON value of a dataclass, or of what its fields hold."""
    if dataclasses.is_dataclass(value):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_json(part) for name, part in parts if part is not None}
    if isinstance(value, dict):
        return {name: to_json(part) for name, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, tuple) else value


def field_types(record: type) -> dict[str, Any]:
    """The type of each field of a dataclass, without the ``| None`` of those left out."""
    hints = get_type_hints(record, include_extras=True)
    return {field.name: _present(hints[field.name]) for field in dataclasses.fields(record)}


def _present(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    (present,) = (kind for kind in get_args(annotation) if kind is not types.NoneType)
    return present


@cache
def _reader(annotation: Any) -> Reader:
    if annotation is str:
        return _checked(TEXT)
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        return _of_record(annotation)
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        base, kind = inner
        return _checked(kind, None if base in (int, float, str) else _reader(base))
    if get_origin(annotation) is dict:
        return _checked(OBJECT, _of_dict(_reader(inner[1])))
    assert get_origin(annotation) is tuple and inner[1:] == (...,), f"no JSON is a {annotation}"
    return _checked(LIST, _of_list(_reader(inner[0])))


def _checked(kind: Kind, read: Reader | None = None) -> Reader:
    def reader(value: Any) -> Any:
        if not kind.accepts(value):
            raise Misfit(value, kind.expected)
        return value if read is None else read(value)

    return reader


def _of_record(record: type) -> Reader:
    readers = {name: _reader(annotation) for name, annotation in field_types(record).items()}
    needed = {
        field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING
    }

    def reader(value: dict[str, Any]) -> Any:
        names = (name for name in readers if name in value or name in needed)
        pairs = ((name, value.get(name, NOTHING)) for name in names)
        return record(**{name: _at(name, readers[name], part) for name, part in pairs})

    return _checked(OBJECT, reader)


def _of_dict(read: Reader) -> Reader:
    return lambda value: {name: _at(name, read, part) for name, part in value.items()}


def _of_list(read: Reader) -> Reader:
    return lambda value: tuple(_at(index, read, part) for index, part in enumerate(value))


def _at(name: object, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except Misfit as misfit:
        misfit.place.insert(0, str(name))
        raise
