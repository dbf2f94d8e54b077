"""Near-duplicates: against python sets of word tuples, by hand, and at the edges of text and of the index."""

import random
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import InputError
from lmsplit.partition import near_duplicates
from lmsplit.partition import shingles as shingling
from lmsplit.partition.near_duplicates import NearDuplicateIndex, banding, bytes_per_document, write_index
from lmsplit.partition.shingles import Shingles, jaccard, shingle

# Long enough that its sets are like those of documents; nothing here depends on what it says.
DOCSTRINGS = [
    text
    for module in (polars.DataFrame, polars.Series, polars.Expr)
    for name in sorted(vars(module))
    if len((text := getattr(getattr(module, name), "__doc__", None) or "").split()) >= 80
    and not re.search("[\u0e00-\u0fff\u3000-\uffff]", text)  # the reference knows words with spaces between them only
]
WORD_LIST = [f"word{number}" for number in range(400)]
edits = st.lists(st.tuples(st.sampled_from(["substitute", "delete", "insert", "swap"]), st.floats(0, 1)), max_size=40)


def reference(text: str) -> set[tuple[str, ...]]:
    """The set of word 5-grams of a text, without anything of the module."""
    words = re.findall(r"\w+", text.lower()) or [text.strip()]
    return {tuple(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}


def reference_similarity(first: str, second: str) -> float:
    one, other = reference(first), reference(second)
    return len(one & other) / len(one | other)


def similarity(first: str, second: str) -> float:
    shingles = shingle([first, second])
    return jaccard(shingles.of(0), shingles.of(1))


def edited(words: Sequence[str], changes: list[tuple[str, float]]) -> str:
    words = list(words)
    for kind, place in changes:
        at = int(place * (len(words) - 2))
        if kind == "substitute":
            words[at] = "other"
        elif kind == "delete":
            del words[at]
        elif kind == "insert":
            words.insert(at, "more")
        else:
            words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def build(directory: Path, *pieces: Sequence[str], threshold: float = 0.8, seed: int = 0) -> NearDuplicateIndex:
    directory.mkdir(exist_ok=True)
    documents, bands = directory / "documents.arrow", directory / "bands.arrow"
    write_index(
        (([f"{number}/{n}" for n in range(len(texts))], shingle(texts)) for number, texts in enumerate(pieces)),
        threshold,
        seed,
        documents,
        bands,
    )
    return NearDuplicateIndex(documents, bands)


def test_similarity_of_a_hand_worked_pair() -> None:
    # a b c d e | b c d e f | c d e f g   and   a b c d e | b c d e f | c d e f h: two of four.
    assert similarity("a b c d e f g", "A b, c\n\nd -- e f (h)") == 0.5
    assert shingle(["a b c d e f g", "a b c d e a b c d e"]).offsets.tolist() == [0, 3, 8]
    assert shingle(["a a a a a a a a"]).offsets.tolist() == [0, 1]


@given(st.lists(st.text("abc \n.", max_size=60), max_size=8))
def test_shingles_count_as_the_reference_does(texts: list[str]) -> None:
    shingles = shingle(texts)
    assert np.diff(shingles.offsets).tolist() == [len(reference(text)) for text in texts]
    assert shingles.hashes.dtype == np.uint64
    for one in range(len(texts)):
        assert (np.diff(shingles.of(one).astype(object)) > 0).all()
        for other in range(len(texts)):
            expected = reference_similarity(texts[one], texts[other])
            assert jaccard(shingles.of(one), shingles.of(other)) == expected


@pytest.mark.parametrize(
    ("text", "num_shingles"),
    [
        ("", 1),
        (" \n", 1),
        ("?!", 1),
        ("one two three", 1),
        ("one two three four five", 1),
        ("one two three four five six", 2),
        ("北京是中国的首都", 4),  # eight ideographs
        ("これは猫です", 2),
        ("서울은 한국의 수도", 4),
        ("add ½ of x² to a_b", 2),  # six words
        ("iPhone在北京发布", 2),  # one word in Latin letters and five ideographs
        ("हिन्दी में पाँच शब्द यहाँ हैं", 2),  # six words: marks are part of them
    ],
)
def test_shingles_are_of_words_in_every_script(text: str, num_shingles: int) -> None:
    assert np.diff(shingle([text]).offsets).tolist() == [num_shingles]


def test_texts_without_words_are_told_apart_by_their_characters() -> None:
    assert similarity("", " \n ") == similarity("?!", " ?! ") == 1
    assert similarity("", "?!") == similarity("?!", "!?") == similarity("one", "one two") == similarity("?!", "one") == 0


def test_one_ideograph_of_many_is_a_small_change() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))  # 96 shingles, 5 of which hold any one ideograph
    assert similarity(text, text.replace(text[50], "龍")) == 91 / 101


def test_shingles_are_the_same_on_every_machine_and_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    together = shingle(["one two three four five six", "?!", *DOCSTRINGS])
    assert together.hashes[:3].tolist() == [10246531217163834919, 18115881110471057863, 12062732596500890447]
    for n in random.Random(0).sample(range(len(DOCSTRINGS)), 20):
        assert shingle([DOCSTRINGS[n]]).hashes.tolist() == together.of(n + 2).tolist()
    monkeypatch.setattr(shingling, "_CHARACTERS", 700)  # now long docstrings are cut, and every group ends early
    cut = shingle(["one two three four five six", "?!", *DOCSTRINGS])
    assert cut.offsets.tolist() == together.offsets.tolist()
    assert cut.hashes.tobytes() == together.hashes.tobytes()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 0.999, 1.0])
def test_banding_nominates_a_pair_at_the_threshold(threshold: float) -> None:
    num_bands, num_rows = banding(threshold)
    assert 1 <= num_rows <= 8
    assert 1 - (1 - threshold**num_rows) ** num_bands >= 0.9995
    assert num_bands == 1 or 1 - (1 - threshold**num_rows) ** (num_bands - 1) < 0.9995  # not one band too many


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_banding_refuses_a_threshold_that_is_no_similarity(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold is .*: expected a Jaccard similarity above 0 and up to 1"):
        banding(threshold)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.8, 0.95])
def test_a_band_agrees_as_often_as_the_theory_says(fraction: float) -> None:
    num_pairs, size = 300, 400
    draw = np.random.default_rng(1)
    shared = round(2 * size * fraction / (1 + fraction))
    sets = []
    for _ in range(num_pairs):
        values = draw.integers(0, 2**64, 2 * size - shared, dtype=np.uint64)
        sets += [np.sort(values[:size]), np.sort(values[size - shared :])]
    shingles = Shingles(np.arange(2 * num_pairs + 1) * size, np.concatenate(sets))
    keys_BN = near_duplicates.band_keys(shingles, 0.8, seed=3)
    agree = float((keys_BN[:, ::2] == keys_BN[:, 1::2]).mean())
    assert abs(agree - (shared / (2 * size - shared)) ** 5) < 0.025  # six standard deviations of 6,000 bands are 0.038


@settings(max_examples=60, deadline=None)
@given(edits, st.integers(0, len(DOCSTRINGS) - 1), st.integers(0, 2**63 - 1))
def test_matches_agree_with_an_exact_search(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float]], start: int, seed: int
) -> None:
    heldout = [DOCSTRINGS[(start + n) % len(DOCSTRINGS)] for n in range(6)]
    words = re.findall(r"\w+", heldout[3])
    query = edited(words, changes)
    index = build(tmp_path_factory.mktemp("index"), heldout, seed=seed)
    document, found = (array[0] for array in index.matches(shingle([query])))
    exact = [reference_similarity(query, text) for text in heldout]
    if document >= 0:
        place = int(index.doc_id(document).split("/")[1])
        assert found == np.float32(exact[place])
        assert exact[place] == max(exact)
        assert exact.index(max(exact)) == place
        assert exact[place] >= 0.8
    else:
        assert found == 0
        assert max(exact) < 0.9  # at 0.9 one pair in 10^8 is missed


def test_nearly_every_pair_at_the_threshold_is_found(tmp_path: Path) -> None:
    draw = random.Random(5)
    heldout = [draw.choices(WORD_LIST, k=200) for _ in range(300)]
    # Each substitution takes 5 of 196 5-grams: 4 leave 176 of 216 in both (0.815), 5 leave 171 of 221 (0.774).
    near = [edited(words, [("substitute", place) for place in (0.2, 0.4, 0.6, 0.8)]) for words in heldout]
    far = [edited(words, [("substitute", place) for place in (0.2, 0.35, 0.5, 0.65, 0.8)]) for words in heldout]
    index = build(tmp_path, [" ".join(words) for words in heldout])
    assert index.matches(shingle(near)).document.tolist() == list(range(300))
    assert (index.matches(shingle(near)).similarity >= 0.8).all()
    assert index.matches(shingle(far)).document.tolist() == [-1] * 300


def test_matches_do_not_depend_on_batch_or_order(tmp_path: Path) -> None:
    queries = DOCSTRINGS[::2] + [text + " and so on" for text in DOCSTRINGS[:50]]
    index = build(tmp_path, DOCSTRINGS[:40], DOCSTRINGS[40:60])
    whole = index.matches(shingle(queries))
    assert (whole.document >= 0).sum() > 50
    order = random.Random(0).sample(range(len(queries)), len(queries))
    shuffled = index.matches(shingle([queries[n] for n in order]))
    assert shuffled.document.tolist() == whole.document[order].tolist()
    assert shuffled.similarity.tolist() == whole.similarity[order].tolist()
    for n in order[:20]:
        assert index.matches(shingle([queries[n]])).document.tolist() == [whole.document[n]]


def test_index_is_the_same_bytes_and_knows_what_made_it(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        index = build(tmp_path / name, DOCSTRINGS[:20], [], DOCSTRINGS[20:30], threshold=0.7, seed=seed)
    assert (index.threshold, index.seed, len(index)) == (0.7, 8, 30)
    for file in ("documents.arrow", "bands.arrow"):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in ("first", "again", "other"))
        assert first == again
        assert first != other


def test_index_files_hold_what_was_given_and_sorted_bands(tmp_path: Path) -> None:
    build(tmp_path, DOCSTRINGS[:20], DOCSTRINGS[20:30])
    allocated = pa.total_allocated_bytes()
    index = NearDuplicateIndex(tmp_path / "documents.arrow", tmp_path / "bands.arrow")
    assert pa.total_allocated_bytes() - allocated < 1024  # all of it is mapped
    with pa.OSFile(str(tmp_path / "documents.arrow")) as source:
        documents = pa.ipc.open_file(source).read_all()
    with pa.OSFile(str(tmp_path / "bands.arrow")) as source:
        bands = pa.ipc.open_file(source)
        batches = [bands.get_batch(band) for band in range(bands.num_record_batches)]
    assert documents["doc_id"].to_pylist() == [f"0/{n}" for n in range(20)] + [f"1/{n}" for n in range(10)]
    shingles = shingle(DOCSTRINGS[:30])
    assert documents["shingles"].to_pylist() == [shingles.of(n).tolist() for n in range(30)]
    assert [index.shingles(n).tolist() for n in range(30)] == documents["shingles"].to_pylist()
    keys_BN = near_duplicates.band_keys(shingles, 0.8, seed=0)
    assert len(batches) == 20
    for keys_N, batch in zip(keys_BN, batches, strict=True):
        assert batch["key"].to_pylist() == sorted(keys_N.tolist())
        assert keys_N[batch["document"].to_numpy()].tolist() == batch["key"].to_pylist()


def test_size_is_as_documented(tmp_path: Path) -> None:
    index = build(tmp_path, DOCSTRINGS)
    sizes = sum((tmp_path / file).stat().st_size for file in ("documents.arrow", "bands.arrow"))
    num_shingles = sum(len(index.shingles(n)) for n in range(len(index)))
    expected = len(index) * bytes_per_document(0.8, num_shingles / len(index)) + sum(
        len(index.doc_id(n)) for n in range(len(index))
    )
    assert abs(sizes - expected) < 20_000  # headers and padding, most of them of the 20 bands
    assert bytes_per_document(0.8, 300) == 20 * 12 + 300 * 8 + 12


def test_equal_sets_are_stored_once_and_the_first_is_returned(tmp_path: Path) -> None:
    one, other = DOCSTRINGS[:2]
    index = build(tmp_path, [other, one, one.upper()], [one + " !", other])
    assert len(index) == 2
    assert [index.doc_id(document) for document in index.matches(shingle([one, other])).document.tolist()] == ["0/1", "0/0"]


def test_tie_goes_to_the_lowest_row(tmp_path: Path) -> None:
    words = WORD_LIST[:100]
    left, right = ["new", *words[1:]], [*words[:-1], "new"]
    index = build(tmp_path, [" ".join(WORD_LIST[200:300]), " ".join(right), " ".join(left)])
    assert index.matches(shingle([" ".join(words)])).document.tolist() == [1]


def test_boilerplate_is_compared_with_a_bounded_number_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word{number}" for number in range(300)]
    family = [" ".join([*words[:299], f"name{number}"]) for number in range(1000)]
    index = build(tmp_path, family)
    calls = []
    monkeypatch.setattr(near_duplicates, "jaccard", lambda *sets: calls.append(1) or jaccard(*sets))
    matches = index.matches(shingle([" ".join([*words[:299], "someone"])]))
    np.testing.assert_allclose(matches.similarity, 295 / 297, rtol=1e-6)  # as to every one of the family
    assert len(calls) == 256
    calls.clear()
    # A document that is nominated by all but similar to none of the first 256 is still compared with the others.
    monkeypatch.setattr(near_duplicates, "jaccard", lambda *sets: jaccard(*sets) if len(calls) >= 600 else calls.append(1) or 0.0)
    assert index.matches(shingle([" ".join([*words[:299], "someone"])])).document.tolist() != [-1]
    assert len(calls) == 600


def test_empty_index_and_empty_batch(tmp_path: Path) -> None:
    for index in (build(tmp_path / "no pieces"), build(tmp_path / "no documents", [], [])):
        assert len(index) == 0
        assert index.matches(shingle(["one two", ""])).document.tolist() == [-1, -1]
    index = build(tmp_path / "empty text", ["", *DOCSTRINGS[:2]])
    assert index.matches(shingle([])).document.tolist() == []
    assert index.matches(shingle([" ", "one"])).document.tolist() == [0, -1]


def test_huge_document_is_found_and_takes_memory_in_proportion(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    text = " ".join(np.array(WORD_LIST)[draw.integers(0, 400, 700_000)].tolist())  # 5 MB, more than one piece
    index = build(tmp_path, ["short", text])
    tracemalloc.start()
    try:
        matches = index.matches(shingle([text + " more words", "short one"]))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert matches.document.tolist() == [1, -1]
    assert peak_bytes < 15 * len(text)  # numpy's and Python's; a signature matrix of 100 rows would take 560 MB


def test_index_of_another_version_or_of_two_runs_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "one", DOCSTRINGS[:5])
    build(tmp_path / "two", DOCSTRINGS[:6])
    with pytest.raises(InputError, match="are of different indexes: build the index again"):
        NearDuplicateIndex(tmp_path / "one" / "documents.arrow", tmp_path / "two" / "bands.arrow")
    later = tmp_path / "later.arrow"
    with (
        pa.OSFile(str(later), "wb") as sink,
        pa.ipc.new_file(sink, near_duplicates.DOCUMENTS.with_metadata({"format_version": "9"})),
    ):
        pass
    with pytest.raises(InputError, match=r"later\.arrow has index format 9, expected 1: build the index again"):
        NearDuplicateIndex(later, tmp_path / "two" / "bands.arrow")
