"""What Parquet footers say of the columns, and whether the files and the configuration agree about them.

Cost: one footer a file. It reads no page, and knows nothing of JSONL, whose lines are judged one by one.
"""

from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.schema import DOCUMENT_FIELDS, type_named
from lmsplit.manifests.store import Store
from lmsplit.partition.records import Columns


class Footer(NamedTuple):
    """What a Parquet file says of itself."""

    schema: pa.Schema
    groups: list[tuple[int, int]]
    """rows and uncompressed bytes of each row group."""


def check_kept(columns: Columns) -> None:
    """Refuse kept columns that a manifest cannot have.

    Raises:
        ConfigurationError: a name stands twice or is a manifest's own, or a type cannot be kept.
    """
    taken = {name for name, *_ in DOCUMENT_FIELDS} | {"record_bytes"}
    for name, declared in columns.keep:
        if name in taken:
            raise ConfigurationError(f"keep names {name!r}, which is twice there or a manifest's own column: remove it")
        taken.add(name)
        type_named(declared or "string")


def footer_of(root: Store, name: str) -> Footer:
    """Read the footer of the Parquet file `name` below `root`.

    Raises:
        InputError: the file is truncated or damaged.
    """
    try:
        with root.input(name) as source, pq.ParquetFile(source) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            return Footer(file.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{name}: the Parquet footer cannot be read, the file is truncated or damaged ({error}): "
            "write it again or leave it out"
        ) from error


class _Use(NamedTuple):
    """A column as the configuration uses it."""

    name: str
    required: bool
    """False: absent from every file is fine, but not from some only, unless a type is declared."""
    allowed: tuple[str, ...] | None
    """types; None: any that can be kept."""
    declared: str | None = None


_ABSENT: Final = "not"
_REPEATED: Final = "more than once"
_NULL: Final = "null"
_NAMED_FILES: Final = 3
_IDENTIFIERS: Final = ("string", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def _uses(columns: Columns) -> list[_Use]:
    uses = [_Use(columns.text, True, ("string",))]
    uses += [_Use(columns.id, columns.id != Columns.id, _IDENTIFIERS)] if columns.id is not None else []
    uses += [_Use(columns.source, columns.source != Columns.source, ("string",))] if columns.source is not None else []
    uses += [_Use(columns.group, True, _IDENTIFIERS)] if columns.group is not None else []
    return uses + [_Use(name, True, None, str(type_named(kind)) if kind else None) for name, kind in columns.keep]


def _with_rows(footers: dict[str, Footer]) -> dict[str, Footer]:
    """Leave out files without a row, which have nothing to disagree about, unless there are no others."""
    return {path: footer for path, footer in footers.items() if any(rows for rows, _ in footer.groups)} or footers


def _canonical(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _canonical(kind.value_type)
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "string" if strings else str(kind)


def _files_by_type(footers: dict[str, Footer], name: str) -> dict[str, list[str]]:
    """Return which files have the column in which type; files that do not have it once are under a word of their own."""
    found: dict[str, list[str]] = {}
    for path, footer in footers.items():
        places = footer.schema.get_all_field_indices(name)
        once = _canonical(footer.schema.field(places[0]).type) if places else _ABSENT
        found.setdefault(_REPEATED if len(places) > 1 else once, []).append(path)
    return found


def _differences(found: dict[str, list[str]], footers: dict[str, Footer]) -> str:
    """Say which files have what: `int64 in a.parquet and int32 in b.parquet, c.parquet`."""
    parts = []
    for kind, paths in found.items():
        more = f" and {len(paths) - _NAMED_FILES} more files" if len(paths) > _NAMED_FILES else ""
        has = f", which has {', '.join(footers[paths[0]].schema.names)}" if kind in {_ABSENT, _REPEATED} else ""
        parts.append(f"{kind} in {', '.join(paths[:_NAMED_FILES])}{more}{has}")
    return " and ".join(parts)


def _problem(footers: dict[str, Footer], use: _Use) -> str | None:
    """Say what is wrong with a column, or None."""
    found = _files_by_type(footers, use.name)
    found.pop(_NULL, None)  # without a single value there is no type to disagree about
    if use.declared and len(found) > 1:
        found.pop(_ABSENT, None)  # null where it is absent, as declared
    column = f"column {use.name!r} is {_differences(found, footers)}"
    if use.required and not found.keys().isdisjoint({_ABSENT, _REPEATED}):
        declare = ", or declare its type to have null there" if use.allowed is None and len(found) > 1 else ""
        return f"{column}: expected once in every Parquet file; correct the name in the configuration, or the file{declare}"
    if _REPEATED in found or (_ABSENT in found and len(found) > 1):
        return f"{column}: expected once in every Parquet file, or in none; write null where there is no value"
    if len(found) > 1:
        return f"{column}: expected one type everywhere; write one of the files again"
    kind = next(iter(found), _ABSENT)
    if kind == _ABSENT:
        return None
    if use.declared and kind != use.declared:
        return f"kept {column}, expected {use.declared} as declared: correct the declaration, or the file"
    if use.allowed and kind not in use.allowed:
        expected = "string or integer" if len(use.allowed) > 1 else "string"
        return f"{column}, expected {expected}: name another column, or write the file again"
    return None


def check_types(footers: dict[str, Footer], columns: Columns) -> None:
    """Check that the configured columns are there, each of one fitting type in all Parquet files.

    Args:
        footers: by the file's path.
        columns: as configured; the default id and source columns may be absent from all files, and kept ones with a declared
            type from some.

    Raises:
        InputError: a column is missing, stands twice, or is not of one type everywhere; every such column is named, with the
            files that differ.
    """
    footers = _with_rows(footers)
    problems = [problem for use in _uses(columns) if footers and (problem := _problem(footers, use))]
    if problems:
        raise InputError("; ".join(problems))


def kept_types(footers: dict[str, Footer], columns: Columns) -> tuple[tuple[str, str], ...]:
    """Return (name, Arrow type name) of every kept column: as in Parquet, else as declared, else string.

    Args:
        footers: by the file's path; they passed `check_types`.
        columns: as configured.

    Raises:
        ConfigurationError: the files have it in a type that cannot be kept.
    """
    kept = []
    for name, declared in columns.keep:
        found = next((item for item in _files_by_type(_with_rows(footers), name).items() if item[0] != _NULL), None)
        try:
            kept.append((name, str(type_named(declared or (found[0] if found else "string")))))
        except ConfigurationError as error:
            where = f" of {found[1][0]}" if found else ""
            raise ConfigurationError(f"keep names column {name!r}{where}: {error}") from error
    return tuple(kept)
