"""Steps and documents traced through small outputs written by hand, against a reference that reads nothing from disk."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.train.config import Where
from lmsplit.train.lineage import (
    Lineage,
    PackReference,
    Span,
    TracedRun,
    checkpoint_steps,
    read_lineage,
    trace_document,
    trace_step,
    write_lineage,
)
from lmsplit.train.order import draw_rows
from tests.train.outputs import Rows, make_order, pieces, write_pack, write_run

FIRST: Rows = [[("a", 5), ("b", 1)], [("b", 4)], [("c", 2), ("d", 3)]]
SECOND: Rows = [[("x", 2)], [("x", 1), ("y", 4)]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A seed over two packs and an expert on the second, both finished, the seed with two checkpoints."""
    write_pack(tmp_path, "first", FIRST)
    write_pack(tmp_path, "second", SECOND)
    packs = [("d00000", "first"), ("d00001", "second")]
    pairs = [(0, 2), (1, 1), (0, 0), (0, 1), (1, 0), (0, 1)]
    write_run(tmp_path, "seed", packs, pairs, 2, checkpoints=(1, 2))
    write_run(tmp_path, "d00001", packs[1:], [(0, 1), (0, 0), (0, 1)], 1)
    return tmp_path


def test_step_by_hand(output: Path) -> None:
    assert trace_step(output / "seed", 1) == [
        Span("c", 0, 2, 0, 2, 1, "checkpoint-1", "seed", "d00000"),
        Span("d", 2, 5, 0, 2, 1, "checkpoint-1", "seed", "d00000"),
        Span("x", 0, 1, 2, 1, 1, "checkpoint-1", "seed", "d00001"),
        Span("y", 1, 5, 0, 1, 1, "checkpoint-1", "seed", "d00001"),
    ]


def test_document_by_hand(output: Path) -> None:
    """Row 1, with the last 4 of b's 5 tokens, is trained on twice."""
    assert trace_document(output / "seed", "b") == [
        Span("b", 5, 6, 0, 0, 2, "checkpoint-2", "seed", "d00000"),
        Span("b", 0, 4, 1, 1, 2, "checkpoint-2", "seed", "d00000"),
        Span("b", 0, 4, 1, 1, 3, "final", "seed", "d00000"),
    ]


def test_document_of_an_expert_has_the_seeds_spans_first(output: Path) -> None:
    assert trace_document(output / "experts" / "d00001", "x") == [
        Span("x", 0, 1, 2, 1, 1, "checkpoint-1", "seed", "d00001"),
        Span("x", 0, 2, 0, 0, 3, "final", "seed", "d00001"),
        Span("x", 0, 1, 2, 1, 1, "final", "d00001", "d00001"),
        Span("x", 0, 2, 0, 0, 2, "final", "d00001", "d00001"),
        Span("x", 0, 1, 2, 1, 3, "final", "d00001", "d00001"),
    ]
    assert {span.run for span in trace_step(output / "experts" / "d00001", 1)} == {"d00001"}


def test_document_that_was_never_trained_on_has_no_spans(output: Path) -> None:
    assert trace_document(output / "seed", "z") == []


def test_first_checkpoint_is_the_smallest_that_still_exists(output: Path) -> None:
    shutil.rmtree(output / "seed" / "checkpoint-1")
    (output / "seed" / "checkpoint-best").mkdir()
    (output / "seed" / "checkpoint-best" / "trainer_state.json").write_text("{}")
    (output / "seed" / "checkpoint-1").write_text("no directory")
    assert [trace_step(output / "seed", step)[0].checkpoint for step in (1, 2, 3)] == ["checkpoint-2", "checkpoint-2", "final"]


def test_checkpoint_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    """The trainer's state is written last, so a directory without it is what a kill has left."""
    write_pack(tmp_path, "first", FIRST)
    seed = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0)] * 6, 1, finished=False, checkpoints=(2, 4))
    partial = seed.with_name(".seed.partial")
    (partial / "checkpoint-5").mkdir()
    (partial / "checkpoint-5" / "model.safetensors").write_bytes(b"half")
    assert sorted(checkpoint_steps(partial)) == [2, 4]
    assert TracedRun.open(seed).num_trained_steps == 4
    assert trace_step(seed, 5)[0].checkpoint is None
    (partial / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert trace_step(seed, 5)[0].checkpoint == "checkpoint-5"


def test_unfinished_run_is_found_in_its_hidden_sibling(tmp_path: Path) -> None:
    write_pack(tmp_path, "first", FIRST)
    pairs = [(0, row % 3) for row in range(12)]
    seed = write_run(tmp_path, "seed", [("d00000", "first")], pairs, 1, finished=False, checkpoints=(4, 10))
    assert not seed.exists()
    assert [trace_step(seed, step)[0].checkpoint for step in (4, 5, 10, 11)] == ["checkpoint-4", *["checkpoint-10"] * 2, None]
    assert [span.step for span in trace_document(seed, "c")] == [3, 6, 9, 12]
    assert trace_document(seed, "c")[-1].checkpoint is None
    assert TracedRun.open(seed).num_trained_steps == 10


def test_unfinished_expert_finds_the_seed_and_the_packs(output: Path) -> None:
    expert = write_run(output, "d00000", [("d00000", "first")], [(0, 0)], 1, finished=False)
    assert [(span.run, span.checkpoint) for span in trace_document(expert, "a")] == [("seed", "checkpoint-2"), ("d00000", None)]


def test_runs_are_traced_from_inside_their_directory(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trace_document(output / "experts" / "d00001", "y")
    monkeypatch.chdir(output / "experts" / "d00001")
    assert trace_document(Path(), "y") == expected


@pytest.mark.parametrize("step", [0, -1, 4])
def test_step_that_does_not_exist_is_refused(output: Path, step: int) -> None:
    with pytest.raises(ConfigurationError, match=f"seed has no step {step}: it has steps 1 to 3"):
        trace_step(output / "seed", step)


def test_missing_pack_is_named(output: Path) -> None:
    shutil.rmtree(output / "packed" / "second")
    assert trace_step(output / "seed", 2)  # needs the first pack only
    for trace in (lambda: trace_step(output / "seed", 1), lambda: trace_document(output / "seed", "a")):
        with pytest.raises(ManifestError, match=r"packed/second is missing.*d00001.*the same lmsplit train command"):
            trace()


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"there is no run .*seed, and none unfinished in .*\.seed\.partial: run lmsplit"):
        trace_document(tmp_path / "seed", "a")


def test_directory_without_lineage_is_refused(output: Path) -> None:
    with pytest.raises(ManifestError, match=r"lineage\.json is missing or cannot be read .*such as <output>/seed"):
        trace_document(output, "a")
    content = json.loads((output / "seed" / "lineage.json").read_text())
    (output / "seed" / "lineage.json").write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_lineage(output / "seed")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing or cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is missing or cannot be read"),
        (lambda path: pq.write_table(pq.read_table(path)[:5], path), "has 5 rows, expected a multiple of the 2 of a step"),
    ],
)
def test_damaged_order_is_refused(output: Path, damage, message: str) -> None:
    damage(output / "seed" / "order.parquet")
    with pytest.raises(ManifestError, match=rf"order\.parquet {message}"):
        trace_step(output / "seed", 1)


def test_lineage_reads_back_and_order_is_plain_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.train.lineage._GROUP_ROWS", 7)  # steps of 4 rows lie across row groups
    order = draw_rows([np.array([3, 4, 2]), np.array([5, 1])], [1, 2], 60, 4, 0)
    packs = (PackReference(domain="d00000", digest="a"), PackReference(domain="d00003", digest="b"))
    where: Where = {"license": ["mit", "cc0"], "year": [2001, 1], "gold": [True], "score": [0.5, 2]}
    lineage = Lineage(run="seed", manifest="m", tokenizer="t", packs=packs, rows_per_step=4, where=where, seed_run=None)
    write_lineage(tmp_path, lineage, order)
    assert read_lineage(tmp_path) == lineage
    assert str(read_lineage(tmp_path).where) == str(where)  # True is not 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lineage.json", "order.parquet"]
    path = tmp_path / "order.parquet"
    expected = [(place // 4 + 1, pack, row) for place, (pack, row) in enumerate(zip(order.pack_S, order.row_S, strict=True))]
    assert pl.read_parquet(path).rows() == expected
    assert [tuple(row.values()) for row in pq.read_table(path).to_pylist()] == expected
    assert duckdb.sql(f"select * from '{path}'").fetchall() == expected


@pytest.mark.parametrize("where", ['{"year": 2001}', '{"license": [null]}', '{"license": []}', '{"license": [["mit"]]}'])
def test_filter_of_another_form_is_refused(output: Path, where: str) -> None:
    path = output / "seed" / "lineage.json"
    path.write_text(path.read_text().replace('"where": null', f'"where": {where}'))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_lineage(output / "seed")


PACKS = st.lists(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=3), min_size=1, max_size=5),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30, deadline=None)
@given(
    packs=PACKS, data=st.data(), rows_per_step=st.integers(1, 4), finished=st.booleans(), checkpoints=st.sets(st.integers(1, 9))
)
def test_steps_and_documents_agree_with_a_reference(
    packs, data, rows_per_step: int, finished: bool, checkpoints: set[int]
) -> None:
    packs = [[[(f"{number}-{doc}", length) for doc, length in row] for row in rows] for number, rows in enumerate(packs)]
    every = [(pack, row) for pack, rows in enumerate(packs) for row in range(len(rows))]
    pairs = data.draw(st.lists(st.sampled_from(every), min_size=rows_per_step, max_size=24))
    pairs = pairs[: len(pairs) // rows_per_step * rows_per_step]
    expected = []
    for place, (pack, row) in enumerate(pairs):
        step = place // rows_per_step + 1
        later = [number for number in sorted(checkpoints) if number >= step]
        checkpoint = f"checkpoint-{later[0]}" if later else "final" if finished else None
        rest = {"step": step, "checkpoint": checkpoint, "run": "seed", "domain": f"d{pack}"}
        expected += [Span(**piece, **rest) for piece in pieces(packs[pack]) if piece["row"] == row]
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        for number, rows in enumerate(packs):
            write_pack(output, f"p{number}", rows)
        references = [(f"d{number}", f"p{number}") for number in range(len(packs))]
        run = write_run(output, "seed", references, pairs, rows_per_step, finished=finished, checkpoints=sorted(checkpoints))
        by_step = [span for step in range(1, len(pairs) // rows_per_step + 1) for span in trace_step(run, step)]
        by_document = {doc_id: trace_document(run, doc_id) for doc_id in sorted({span.doc_id for span in expected})}
        untouched = {piece["doc_id"] for rows in packs for piece in pieces(rows)} - set(by_document)
        assert not any(trace_document(run, doc_id) for doc_id in untouched)
    assert by_step == expected
    assert by_document == {doc_id: [span for span in expected if span.doc_id == doc_id] for doc_id in by_document}
    times = Counter(pairs)
    tokens = Counter((span.domain, span.row, position) for span in by_step for position in range(span.start, span.end))
    for (pack, row), count in times.items():
        length = sum(length for _, length in packs[pack][row])
        assert [tokens[f"d{pack}", row, position] for position in range(length + 1)] == [count] * length + [0]


def test_steps_are_those_of_the_drawn_order(tmp_path: Path) -> None:
    """From lengths to spans: what `draw_rows` gives to a step is what the step is traced to."""
    write_pack(tmp_path, "first", FIRST)
    write_pack(tmp_path, "second", SECOND)
    order = draw_rows([np.array([6, 4, 5]), np.array([2, 5])], [1, 1], 60, 3, 0)
    pairs = list(zip(order.pack_S.tolist(), order.row_S.tolist(), strict=True))
    run = write_run(tmp_path, "seed", [("d0", "first"), ("d1", "second")], pairs, 3)
    spans = [span for step in range(1, order.num_steps + 1) for span in trace_step(run, step)]
    assert sum(span.end - span.start for span in spans) == order.num_tokens
    assert make_order(pairs, 3).num_steps == order.num_steps
