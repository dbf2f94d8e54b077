"""What Parquet footers say of the columns, and whether the files and the configuration agree about them.

Cost: one footer a file. It reads no page, and knows nothing of JSONL, whose lines are judged one by one.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.schema import DOCUMENT_FIELDS, type_named
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


def footer_of(root: str, name: str) -> Footer:
    """Read the footer of the Parquet file `name` below `root`.

    Raises:
        InputError: the file is truncated or damaged.
    """
    try:
        with pq.ParquetFile(Path(root, name)) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            return Footer(file.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{name}: the Parquet footer cannot be read, the file is truncated or damaged ({error}): "
            "write it again or leave it out"
        ) from error


def _canonical(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _canonical(kind.value_type)
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "string" if strings else str(kind)


def _column_type(footers: dict[str, Footer], name: str, *, required: bool) -> tuple[str, str] | None:
    """Return the one type of a column in all Parquet files, and the first that has it; None: none has."""
    found: tuple[str, str] | None = None
    for path, footer in footers.items():
        places = footer.schema.get_all_field_indices(name)
        if len(places) > 1 or (required and not places):
            count = "more than once" if places else "not"
            raise InputError(
                f"column {name!r} is {count} in {path}, which has {', '.join(footer.schema.names)}: expected "
                "once in every Parquet file; correct the name in the configuration, or the file"
            )
        kind = _canonical(footer.schema.field(places[0]).type) if places else "null"
        if kind == "null":  # without a single value there is no type to disagree about
            continue
        if found and found[0] != kind:
            raise InputError(
                f"column {name!r} is {found[0]} in {found[1]} and {kind} in {path}: expected one type "
                "everywhere; write one of the files again"
            )
        found = found or (kind, path)
    return found


def check_types(footers: dict[str, Footer], columns: Columns) -> None:
    """Check that the configured columns are there, each of one fitting type in all Parquet files.

    Args:
        footers: by the file's path.
        columns: as configured; the default id and source columns may be absent.

    Raises:
        InputError: a column is missing, of another type, or not of one type everywhere.
    """
    numbers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    for name, required, others in (
        (columns.text, True, []),
        (columns.id, columns.id != Columns.id, numbers),
        (columns.source, columns.source != Columns.source, []),
        (columns.group, True, numbers),
    ):
        found = _column_type(footers, name, required=required) if name is not None else None
        if found and found[0] not in ["string", *others]:
            raise InputError(
                f"column {name!r} is {found[0]} in {found[1]}, expected string{' or integer' * bool(others)}"
                ": name another column, or write the file again"
            )


def kept_types(footers: dict[str, Footer], columns: Columns) -> tuple[tuple[str, str], ...]:
    """Return (name, Arrow type name) of every kept column: as in Parquet, else as declared, else string.

    Raises:
        InputError: a file lacks the column, or has it in another type than declared.
    """
    kept = []
    for name, declared in columns.keep:
        found = _column_type(footers, name, required=True)
        wanted = str(type_named(declared)) if declared else None
        if found and wanted and found[0] != wanted:
            raise InputError(
                f"kept column {name!r} is {found[0]} in {found[1]}, expected {declared} as declared: "
                "correct the declaration, or the file"
            )
        kept.append((name, str(type_named(wanted or (found[0] if found else "string")))))
    return tuple(kept)
