"""Find the text in a table: the field that `corpus.text_field` names, at any depth, as large_binary.

A dotted path reaches a nested field. A field whose name is the path itself is taken before: the longest name that is
there counts at each level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHOWN_FIELDS = 8
SHOWN_CHARACTERS = 60  # of a field's name


def find_field(fields: Any, field: str) -> tuple[str, ...] | None:
    """Return the names that lead to a field of a schema or a struct; None if it is not there.

    A column in which a writer has seen only nulls has the type null: all that is below it is null.
    """
    parts = field.split(".")
    for stop in range(len(parts), 0, -1):
        name = ".".join(parts[:stop])
        found = [one for one in fields if one.name == name]
        if not found:
            continue
        if stop == len(parts) or pa.types.is_null(found[0].type):
            return (name,)
        if pa.types.is_struct(found[0].type) and (below := find_field(found[0].type, ".".join(parts[stop:]))):
            return (name, *below)
    return None


def find_text(schema: Any, field: str, source: object) -> tuple[tuple[str, ...], Any]:
    """Return the names that lead to the text, and its type.

    Raises:
        ValueError: there is no such field, several have its name, or it is not text; the message lists the fields.

    """
    names = find_field(schema, field)
    what = "does not exist"
    if names:
        fields, count, kind = schema, 1, None
        for name in names:
            found = [one for one in fields if one.name == name]
            count, kind = max(count, len(found)), found[0].type
            fields = kind if pa.types.is_struct(kind) else ()
        if count == 1 and is_text(kind):
            return names, kind
        what = f"has the type {_cut(str(kind))}, which is not text"
        if count > 1:
            what = f"exists {count} times, so it is unclear which one holds the text"
    listed = list(_list_fields(schema))
    raise ValueError(
        f"{source}: the column {_cut(field)!r} (corpus.text_field) {what}; the columns are {list_some(listed)}"
    )


def pick_column(batch: Any, names: tuple[str, ...]) -> Any:
    """Return the column of a record batch that these names lead to; null where anything on the way is null."""
    column = batch.column(batch.schema.get_field_index(names[0]))
    for name in names[1:]:
        column = pc.struct_field(column, [_index(column.type, name)])
    return column


def as_binary(column: Any) -> Any:
    """Convert a text column of any Arrow type to large_binary."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.large_binary())


def is_text(kind: Any) -> bool:
    """Tell whether a column of this type can hold text: strings, bytes that are then checked to be UTF-8, or nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_string_view)
    return any(check(kind) for check in (*checks, types.is_null))


def list_some(names: Iterable[str]) -> str:
    """List the first names, each cut to a readable length, and how many more there are."""
    listed = list(names)
    rest = len(listed) - SHOWN_FIELDS
    shown = ", ".join(map(_cut, listed[:SHOWN_FIELDS])) or "none"
    return shown + (f" and {rest:,} more" if rest > 0 else "")


def _list_fields(fields: Any, before: str = "") -> Iterator[str]:
    for one in fields:
        if pa.types.is_struct(one.type) and one.type.num_fields:
            yield from _list_fields(one.type, f"{before}{one.name}.")
        else:
            yield f"{before}{one.name} ({one.type})"


def _cut(name: str) -> str:
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[: SHOWN_CHARACTERS - 3]}..."


def _index(kind: Any, name: str) -> int:
    return next(at for at in range(kind.num_fields) if kind.field(at).name == name)
