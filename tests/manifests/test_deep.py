"""verify --deep: each way in which contents can be wrong gives its own finding, with the place."""

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import deep
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest

FIRST = "data/d00000/part-00000"


def test_deep_verify_reports_reasons_that_disagree_with_the_quarantine(copy_path, forger):
    def change(body: dict) -> None:
        counts = body["counts"]
        counts["quarantined"]["other"] = counts["quarantined"].pop("empty_text")

    forger.body(change)
    assert forger.found() == []
    assert forger.found(deep=True) == [("counts", "quarantine empty_text"), ("counts", "quarantine other")]


def test_deep_verify_reports_text_bytes_that_disagree(copy_path, forger):
    forger.value("domains", "num_bytes", 0, lambda old: old + 5)
    forger.body(lambda body: body["counts"].update(text_bytes=body["counts"]["text_bytes"] + 5))
    assert forger.found() == []
    assert forger.found(deep=True) == [("counts", "text_bytes")]


@pytest.mark.parametrize("change", [lambda old: old + 1, lambda _: None])
def test_deep_verify_reports_tokens_that_disagree_with_the_rows(forger, change):
    forger.count_words()
    forger.value(FIRST, "num_tokens", 1, change)
    assert forger.found() == []
    assert forger.found(deep=True) == [("counts", "tokens")]


def test_deep_verify_says_in_how_many_rows_tokens_are_null(copy_path, forger):
    total = forger.count_words()
    counted = pq.read_table(copy_path / forger.path(FIRST))["num_tokens"].to_pylist()
    forger.value(FIRST, "num_tokens", 1, None)
    forger.value(FIRST, "num_tokens", 0, counted[0] + counted[1])
    finding = verify_manifest(copy_path, deep=True)[0]
    assert finding[:4] == ("counts", "tokens", f"{total} tokens, null in 0 rows", f"{total} tokens, null in 1 rows")


def test_deep_verify_reports_tokens_in_rows_of_a_manifest_without(copy_path, forger):
    forger.value(FIRST, "num_tokens", 0, 0)
    finding = verify_manifest(copy_path, deep=True)[0]
    assert finding[:4] == ("counts", "tokens", "null in every row", "a number in 1 rows")


def test_deep_verify_reports_another_text(copy_path, forger):
    path = forger.value(FIRST, "text_sha256", 2, "0" * 64)
    assert forger.found(deep=True) == [("text_digest", f"{path} row 2 (book-02)")]


def test_deep_verify_reports_another_length(copy_path, forger):
    path = forger.value(FIRST, "num_bytes", 0, 7)
    assert forger.found(deep=True) == [("text_length", f"{path} row 0 (book-00)"), ("counts", "text_bytes")]


def test_deep_verify_reports_a_document_in_another_domains_file(copy_path, forger):
    path = forger.value(FIRST, "domain", 0, "d00002")
    assert forger.found(deep=True, sample=0) == [("wrong_file", f"{path} row 0 (book-00)")]


def test_deep_verify_reports_a_leak_by_group(copy_path, forger):
    forger.value("data/d00001/part-00001", "group", 0, "a book")
    path = forger.value("data/d00000/part-00001", "group", 1, "a book")
    doc_id = pq.read_table(copy_path / path)["doc_id"][1]
    assert forger.found(deep=True) == [("heldout_leak", f"{path} row 1 ({doc_id})")]


def test_deep_verify_reports_a_leak_by_text(copy_path, forger):
    heldout = pq.read_table(copy_path / forger.path("data/d00000/part-00002")).to_pylist()[0]
    assert (heldout["split"], heldout["group"]) == ("heldout", None)

    for column in ("text", "text_sha256", "num_bytes", "group"):
        path = forger.value(FIRST, column, 0, heldout[column])
    codes = [code for code, where in forger.found(deep=True, sample=0) if path in where]
    assert codes == ["heldout_leak"]


def test_deep_verify_lets_excluded_documents_share_a_held_out_group(copy_path, forger):
    forger.value("data/d00002/part-00001", "group", 0, "a book")
    forger.value("data/d00002/part-00002", "group", 0, "a book")
    assert forger.found(deep=True) == []


def swapped(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def test_deep_verify_reports_ids_out_of_order(copy_path, forger):
    path = forger.table("ids/00000", swapped)
    assert forger.found(deep=True) == [("ids_order", path)]


def test_deep_verify_reports_an_id_that_stands_twice(copy_path, forger):
    def change(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)])

    path = forger.table("ids/00000", change)
    assert forger.found(deep=True) == [("ids_order", path), ("ids_rows", "ids")]


def test_deep_verify_reports_another_hash(copy_path, forger):
    path = forger.value("ids/00001", "id_hash", -1, lambda old: old + 1)
    assert forger.found(deep=True) == [("ids_hash", path)]


@pytest.mark.parametrize(("column", "value"), [("row", 1_000), ("part", 9), ("domain", "d00009")])
def test_deep_verify_reports_an_index_that_points_elsewhere(copy_path, forger, column, value):
    forger.value("ids/00001", column, 0, value)
    assert forger.found(deep=True) == [("ids_rows", "ids")]


def test_deep_verify_reports_another_placement(copy_path, forger):
    forger.value(FIRST, "distance", 0, lambda old: old + 0.001)
    assert forger.found(deep=True) == [("placement", "book-00")]
    assert forger.found(deep=True, sample=0) == []


def test_deep_verify_reports_another_domain_but_where_two_are_as_near(copy_path, forger):
    path = forger.value(FIRST, "domain", 0, "d00002")
    wrong_file = ("wrong_file", f"{path} row 0 (book-00)")
    assert forger.found(deep=True) == [wrong_file, ("placement", "book-00")]
    path = forger.value(FIRST, "margin", 0, 0.0)
    assert forger.found(deep=True) == [("wrong_file", f"{path} row 0 (book-00)")]


def test_deep_verify_allows_the_rounding_of_another_machine(copy_path, forger):
    forger.value(FIRST, "distance", 0, lambda old: old + 1e-5)
    assert forger.found(deep=True) == []


def test_deep_verify_reports_a_rule_that_contradicts_itself(copy_path, forger):
    arrays = next(copy_path.glob("placement/*.safetensors"))
    data = bytearray(arrays.read_bytes())
    data[-1] ^= 1
    forger.file(f"placement/{arrays.name}", bytes(data))
    assert forger.found(deep=True) == [("file_damaged", Manifest.open(copy_path).body.placement)]


def test_deep_verify_reports_three_of_a_kind_at_most(copy_path, forger):
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("num_bytes")
        return table.set_column(index, table.schema.field("num_bytes"), pc.add(table["num_bytes"], 1))

    forger.table("data/d00001/part-00000", change)
    assert [code for code, _ in forger.found(deep=True)] == [*["text_length"] * 3, "counts"]


def test_deep_verify_reads_every_text_when_asked(copy_path, forger):
    """Outside the sample a text is digested with `texts` only; ids likewise."""
    path = forger.value(FIRST, "text_sha256", 2, "0" * 64)
    assert verify_manifest(copy_path, deep=True, sample=0) == []
    findings = verify_manifest(copy_path, deep=True, sample=0, texts=True)
    assert [(finding.code, finding.where) for finding in findings] == [("text_digest", f"{path} row 2 (book-02)")]


def test_deep_verify_tells_rows_apart_whatever_their_order():
    """The sum is that of the set of rows; another value in any column, or a row twice, is another one."""
    rows = pl.DataFrame({"doc_id": ["a", "b", "c"], "domain": ["d0", "d0", "d1"], "part": [0, 0, 1], "row": [0, 1, 2]})
    ids = deep._Ids()
    ids.add(ids.of(rows))

    def sum_of(other: pl.DataFrame) -> int:
        found = ids.empty()
        for part in (other[:1], other[1:]):
            found.add(found.of(part))
        return found.sum

    assert sum_of(rows[::-1]) == ids.sum
    for column in ("doc_id", "domain", "part", "row"):
        assert sum_of(rows.with_columns(pl.col(column).reverse())) != ids.sum
    assert sum_of(pl.concat([rows, rows[:1]])) != ids.sum
