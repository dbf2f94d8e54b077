"""No token is lost or counted twice between the documents and the steps, whatever the documents are."""

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import LmsplitError
from lmsplit.train.lineage import Lineage, PackReference, trace_step, write_lineage
from lmsplit.train.order import draw_rows
from lmsplit.train.pack import Packed, Packing, pack_documents
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

ENCODER = DocumentEncoder(train_tokenizer([["a small corpus of words", "another corpus, other words"]], 300))
TEXTS = st.text(st.sampled_from("a small wordcé日 \n"), max_size=60) | st.text(max_size=20)
PACKS = st.lists(st.lists(TEXTS, max_size=8), min_size=1, max_size=3).filter(any)


def read_rows(packed: Packed) -> list[list[int]]:
    with pa.memory_map(str(packed.directory / "rows.arrow")) as source:
        return pa.ipc.open_stream(source).read_all()["input_ids"].to_pylist()


@settings(max_examples=60, deadline=None)
@given(
    packs=PACKS,
    max_length=st.integers(2, 24),
    strategy=st.sampled_from(["bfd_split", "wrapped"]),
    shares=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    num_tokens=st.integers(1, 400),
    rows_per_step=st.integers(1, 5),
    max_repetitions=st.none() | st.floats(0.2, 3),
    seed=st.integers(0, 9),
)
def test_tokens_are_conserved_from_documents_to_steps(
    packs: list[list[str]],
    max_length: int,
    strategy,
    shares: list[int],
    num_tokens: int,
    rows_per_step: int,
    max_repetitions: float | None,
    seed: int,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        packed, rows = [], []
        for number, texts in enumerate(packs):
            directory = output / "packed" / f"p{number}"
            directory.mkdir(parents=True)
            documents = [(f"{number}-{index}", text) for index, text in enumerate(texts)]
            packed.append(pack_documents(documents, ENCODER, Packing(max_length, strategy), directory))
            rows.append(read_rows(packed[-1]))
            check_spans(packed[-1], rows[-1], dict(documents))
        try:
            lengths = [each.row_lengths() for each in packed]
            order = draw_rows(lengths, shares[: len(packs)], num_tokens, rows_per_step, seed, max_repetitions)
        except LmsplitError:
            return  # there are not enough rows for one step
        times = Counter(zip(order.pack_S.tolist(), order.row_S.tolist(), strict=True))
        for number, each in enumerate(packed):
            reached = sum(len(row) for index, row in enumerate(rows[number]) if times[number, index])
            trained = sum(len(row) * times[number, index] for index, row in enumerate(rows[number]))
            assert each.num_tokens == reached + order.not_reached_P[number]
            assert order.tokens_P[number] == trained
            if max_repetitions is not None:
                assert trained <= max_repetitions * each.num_tokens + 1e-6
        assert order.num_tokens == order.tokens_P.sum()
        assert len(order.pack_S) == order.num_steps * rows_per_step
        check_steps(output, packed, order, rows_per_step, times)


def check_spans(packed: Packed, rows: list[list[int]], texts: dict[str, str]) -> None:
    """Every token of every row lies in exactly one span, and a document's spans are its text."""
    found: dict[str, list[int]] = {}
    covered: Counter[tuple[int, int]] = Counter()
    for span in pq.read_table(packed.directory / "spans.parquet").sort_by("token").to_pylist():
        ids = found.setdefault(span["doc_id"], [])
        assert span["token"] == len(ids)
        ids += rows[span["row"]][span["start"] : span["end"]]
        covered.update((span["row"], place) for place in range(span["start"], span["end"]))
    assert covered == Counter((index, place) for index, row in enumerate(rows) for place in range(len(row)))
    assert {doc_id: ENCODER.decode(ids[1:-1]) for doc_id, ids in found.items()} == texts
    assert all((ids[0], ids[-1]) == (ENCODER.begin_id, ENCODER.end_id) for ids in found.values())
    assert packed.num_tokens == sum(map(len, rows)) == sum(map(len, found.values()))


def check_steps(output: Path, packed: list[Packed], order, rows_per_step: int, times: Counter) -> None:
    """What the steps are traced to is each document's tokens as often as its rows were drawn."""
    references = tuple(PackReference(domain=f"d{number}", digest=f"p{number}") for number in range(len(packed)))
    lineage = Lineage(
        run="seed", manifest="m", tokenizer="t", packs=references, rows_per_step=rows_per_step, where=None, seed_run=None
    )
    (output / "seed").mkdir()
    write_lineage(output / "seed", lineage, order)
    expected: Counter[str] = Counter()
    for number, each in enumerate(packed):
        for span in pq.read_table(each.directory / "spans.parquet").to_pylist():
            expected[span["doc_id"]] += times[number, span["row"]] * (span["end"] - span["start"])
    traced: Counter[str] = Counter()
    for step in range(1, order.num_steps + 1):
        for span in trace_step(output / "seed", step):
            traced[span.doc_id] += span.end - span.start
    assert traced == +expected
    assert sum(traced.values()) == order.num_tokens
