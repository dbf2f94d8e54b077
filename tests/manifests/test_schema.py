"""The schemas: what kept columns may be, and that files written with them read back the same."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import schema
from lmsplit.manifests.errors import ConfigurationError

TYPES = (
    *("string", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "double"),
    *("date32", "timestamp[ms]", "timestamp[us]", "timestamp[ns]", "timestamp[us, tz=UTC]", "timestamp[ns, tz=Europe/Berlin]"),
)


@pytest.mark.parametrize("name", TYPES)
def test_kept_column_reads_back_with_its_type(tmp_path, name):
    kind = schema.type_named(name)
    expected = schema.documents(pa.schema([("kept", kind)]), placement_sha256="ab")
    pq.write_table(expected.empty_table(), tmp_path / "x.parquet")
    assert pq.read_metadata(tmp_path / "x.parquet").schema.to_arrow_schema().equals(expected, check_metadata=True)
    assert schema.type_named(str(kind)) == kind  # the commit names it as Arrow writes it


@pytest.mark.parametrize(
    "name",
    ["text", "list<string>", "binary", "large_string", "float16", "date64", "time32[s]", "null", "", "timestamp", "decimal128"],
)
def test_kept_column_refuses_other_types(name):
    with pytest.raises(ConfigurationError, match=r"cannot have the type .*: choose string, bool"):
        schema.type_named(name)


@pytest.mark.parametrize("name", ["timestamp[s]", "timestamp[s, tz=UTC]"])
def test_kept_column_refuses_seconds_which_parquet_lacks(name):
    with pytest.raises(ConfigurationError, match=r"which Parquet lacks: choose timestamp\[ms\]"):
        schema.type_named(name)


def test_kept_columns_follow_the_fixed_ones_by_name():
    found = schema.documents(pa.schema([("url", pa.string()), ("lang", pa.string())]))
    assert found.names == [*schema.FIXED_COLUMNS, "lang", "url"]
    assert found.metadata == {b"lmsplit.schema_version": b"1"}


def test_kept_column_may_not_take_a_fixed_name():
    with pytest.raises(ValueError, match=r"kept columns \['split'\] have the names of fixed columns: rename them"):
        schema.documents(pa.schema([("split", pa.string())]))


def test_empty_strings_and_nulls_stay_apart(tmp_path):
    keep = pa.schema([("kept", pa.string())])
    row = dict.fromkeys(schema.FIXED_COLUMNS) | {"doc_id": "", "text": "", "source_path": "", "source_row": 0, "num_bytes": 0}
    row |= {"text_sha256": "", "domain": "", "placed_by": "", "split": "train", "kept": None}
    pq.write_table(pa.Table.from_pylist([row, row | {"kept": ""}], schema.documents(keep)), tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet")["kept"].to_pylist() == [None, ""]


def test_null_is_refused_where_the_schema_does_not_allow_it(tmp_path):
    row = dict.fromkeys(schema.FIXED_COLUMNS)
    with pytest.raises(pa.ArrowException, match="null"):
        pq.write_table(pa.Table.from_pylist([row], schema.documents()), tmp_path / "x.parquet")
