"""Whether the columns of the input agree with each other and with the configuration."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.schema import type_named
from lmsplit.partition.corpus import Corpus, survey
from lmsplit.partition.records import Columns
from tests.partition.corpora import documents, read, write


def survey_types(folder: Path, first: pa.Table, second: pa.Table | None, columns: Columns) -> Corpus:
    pq.write_table(first, folder / "a.parquet")
    if second is not None:
        pq.write_table(second, folder / "b.parquet")
    return survey([str(folder)], columns)


@pytest.mark.parametrize("size", [0, 10, -1, -9])
def test_survey_refuses_a_truncated_parquet_file(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"a.parquet: the Parquet footer cannot be read.*write it again or leave it out"):
        survey([str(path)], Columns())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(text="body"), r"column 'body' is not in a.parquet, which has text, n"),
        (Columns(group="site"), r"column 'site' is not in a.parquet"),
        (Columns(id="key"), r"column 'key' is not in a.parquet"),
        (Columns(source="origin"), r"column 'origin' is not in a.parquet"),
        (Columns(keep=(("url", None),)), r"column 'url' is not in a.parquet"),
        (Columns(text="n"), r"column 'n' is int64 in a.parquet, expected string: name another column"),
        (
            Columns(id="f"),
            r"column 'f' is double in a.parquet, expected string or integer: name another column",
        ),
        (
            Columns(keep=(("n", "int32"),)),
            r"kept column 'n' is int64 in a.parquet, expected int32 as declared",
        ),
    ],
)
def test_survey_refuses_a_column_that_is_missing_or_of_the_wrong_type(tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        survey_types(tmp_path, pa.table({"text": ["x"], "n": [1], "f": [0.5]}), None, columns)


@pytest.mark.parametrize("columns", [Columns(id="n"), Columns(group="n"), Columns(keep=(("n", None),))])
def test_survey_refuses_types_that_differ_naming_both_files(tmp_path: Path, columns: Columns) -> None:
    first, second = (pa.table({"text": ["x"], "n": pa.array([1], kind)}) for kind in (pa.int64(), pa.int32()))
    with pytest.raises(InputError, match=r"column 'n' is int64 in a.parquet and int32 in b.parquet: expected one type"):
        survey_types(tmp_path, first, second, columns)
    assert survey([str(tmp_path)], Columns()).keep_types == ()


def survey_tables(folder: Path, tables: list[pa.Table], columns: Columns) -> Corpus:
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return survey([str(folder)], columns)


def test_survey_names_every_type_with_its_files(tmp_path: Path) -> None:
    kinds = [pa.int64(), pa.int32(), pa.int64(), pa.int64(), pa.int64(), pa.string(), pa.int64(), pa.null()]
    tables = [pa.table({"text": ["x"], "n": pa.nulls(1, kind)}) for kind in kinds]
    message = (
        "^column 'n' is int64 in 0.parquet, 2.parquet, 3.parquet and 2 more files and int32 in 1.parquet and string in 5.parquet"
        ": expected one type everywhere; write one of the files again$"
    )
    with pytest.raises(InputError, match=message):
        survey_tables(tmp_path, tables, Columns(keep=(("n", None),)))


def test_survey_names_every_column_that_differs(tmp_path: Path) -> None:
    first = pa.table({"text": ["x"], "n": [1], "site": ["s"]})
    second = pa.table([pa.array(["x"]), pa.array(["1"]), pa.array([2]), pa.array([3])], names=["text", "n", "lang", "lang"])
    message = (
        "^column 'site' is string in 0.parquet and not in 1.parquet, which has text, n, lang, lang: expected once in every "
        "Parquet file; .*; column 'n' is int64 in 0.parquet and string in 1.parquet: expected one type everywhere; .*; column "
        "'lang' is not in 0.parquet, which has text, n, site and more than once in 1.parquet, which has text, n, lang, lang: "
        "expected once in every Parquet file"
    )
    with pytest.raises(InputError, match=message):
        survey_tables(tmp_path, [first, second], Columns(group="site", keep=(("n", None), ("lang", None))))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
@pytest.mark.parametrize("name", ["id", "source"])
def test_survey_refuses_a_default_column_that_only_some_files_have(tmp_path: Path, name: str, order: list[int]) -> None:
    tables = [pa.table({"text": ["x"], name: ["i"]}), pa.table({"text": ["x"]})]
    has, lacks = (f"{order.index(number)}.parquet" for number in (0, 1))
    with pytest.raises(
        InputError, match=rf"column '{name}' is .*not in {lacks}, which has text.*, or in none; write null"
    ) as caught:
        survey_tables(tmp_path, [tables[number] for number in order], Columns())
    assert f"string in {has}" in str(caught.value)


def test_survey_takes_default_columns_that_no_file_has_or_that_are_null(tmp_path: Path) -> None:
    tables = [pa.table({"text": ["x"], "id": pa.nulls(1)}), pa.table({"text": ["x"]})]
    assert [file.path for file in survey_tables(tmp_path, tables, Columns()).files] == ["0.parquet", "1.parquet"]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_survey_takes_a_declared_column_that_only_some_files_have(tmp_path: Path, order: list[int]) -> None:
    tables = [pa.table({"text": ["x"], "n": [1]}), pa.table({"text": ["y"]})]
    columns = Columns(keep=(("n", "int64"),))
    corpus = survey_tables(tmp_path, [tables[number] for number in order], columns)
    assert sorted(documents(read(corpus, columns)).select(["text", "n"]).to_pylist(), key=lambda row: row["text"]) == [
        {"text": "x", "n": 1},
        {"text": "y", "n": None},
    ]


def test_survey_refuses_a_declared_column_that_no_file_has_or_one_has_in_another_type(tmp_path: Path) -> None:
    columns = Columns(keep=(("n", "int64"),))
    tables = [pa.table({"text": ["x"], "n": ["1"]}), pa.table({"text": ["y"]})]
    with pytest.raises(InputError, match=r"kept column 'n' is string in 0\.parquet, expected int64 as declared"):
        survey_tables(tmp_path, tables, columns)
    with pytest.raises(InputError, match=r"column 'n' is not in 0\.parquet, 1\.parquet, which has text: expected once"):
        survey_tables(tmp_path, [tables[1], tables[1]], columns)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_survey_leaves_a_file_without_rows_out_of_the_comparison(tmp_path: Path, order: list[int]) -> None:
    tables = [pa.table({"text": ["x"], "id": ["i"], "n": [1]}), pa.table({"text": pa.nulls(0), "n": pa.nulls(0, pa.float32())})]
    columns = Columns(keep=(("n", None),))
    corpus = survey_tables(tmp_path, [tables[number] for number in order], columns)
    assert corpus.keep_types == (("n", "int64"),)
    assert documents(read(corpus, columns))["n"].to_pylist() == [1]


def test_survey_checks_files_without_rows_when_there_are_no_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column 'text' is not in 0\.parquet, which has body"):
        survey_tables(tmp_path, [pa.table({"body": pa.nulls(0)})], Columns())


def test_survey_takes_differences_in_columns_that_are_not_used(tmp_path: Path) -> None:
    first = pa.table({"text": ["x"], "n": [1], "extra": [1]})
    second = pa.table([pa.array(["x"]), pa.array(["1"]), pa.array([2])], names=["text", "n", "n"])
    assert len(survey_tables(tmp_path, [first, second], Columns()).files) == 2


def test_survey_names_the_column_and_file_of_a_type_that_cannot_be_kept(tmp_path: Path) -> None:
    tables = [pa.table({"text": ["x"], "meta": [{"a": 1}]})]
    message = r"keep names column 'meta' of 0.parquet: a kept column cannot have the type 'struct<a: int64>'"
    with pytest.raises(ConfigurationError, match=message):
        survey_tables(tmp_path, tables, Columns(keep=(("meta", None),)))


def test_survey_takes_all_strings_for_one_type_and_a_column_of_nulls_for_any(tmp_path: Path) -> None:
    first, second = (
        pa.table(
            {
                "text": pa.array(["x"], pa.large_string()),
                "k": pa.array(["y"]).dictionary_encode(),
                "source": pa.nulls(1),
            }
        ),
        pa.table({"text": ["x"], "k": ["y"], "source": ["s"]}),
    )
    columns = Columns(keep=(("k", None),))
    corpus = survey_types(tmp_path, first, second, columns)
    assert corpus.keep_types == (("k", "string"),)
    assert documents(read(corpus, columns)).select(["text", "k", "source"]).to_pylist() == [
        {"text": "x", "k": "y", "source": None},
        {"text": "x", "k": "y", "source": "s"},
    ]


def test_survey_resolves_kept_types_from_parquet_then_declaration_then_string(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"text": "x", "n": 3, "when": "2024-01-01", "free": "f"}])
    keep = (("n", None), ("when", "date32"), ("free", None))
    columns = Columns(keep=keep)
    assert survey([str(tmp_path)], columns).keep_types == (
        ("n", "string"),
        ("when", "date32[day]"),
        ("free", "string"),
    )
    table = pa.table({"text": ["x"], "n": [1], "when": pa.array([1], pa.date32()), "free": ["g"]})
    corpus = survey_types(tmp_path, table, None, columns)
    assert corpus.keep_types[0] == ("n", "int64")
    assert documents(read(corpus, columns))["n"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((("domain", None),), "keep names 'domain', which is twice there or a manifest's own column"),
        ((("url", None), ("url", None)), "keep names 'url'"),
        ((("url", "list"),), "a kept column cannot have the type 'list'"),
    ],
)
def test_survey_refuses_kept_columns_that_cannot_be(
    tmp_path: Path, keep: tuple[tuple[str, str | None], ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        survey([str(write(tmp_path / "a.jsonl"))], Columns(keep=keep))


@pytest.mark.parametrize(
    "name",
    ["string", "int8", "float64", "double", "date32", "date32[day]", "timestamp[ns, tz=Europe/Berlin]"],
)
def test_type_named_takes_what_arrow_writes(name: str) -> None:
    assert type_named(str(type_named(name))) == type_named(name)


@pytest.mark.parametrize("name", ["text", "list<item: string>", "binary", "halffloat", "null", "decimal128(3, 2)"])
def test_type_named_refuses_what_a_kept_column_cannot_be(name: str) -> None:
    with pytest.raises(ConfigurationError, match="kept column cannot have the type"):
        type_named(name)
