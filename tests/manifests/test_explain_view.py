"""The terminal view of an explanation: the answer first, nothing obeyed that comes from documents."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lmsplit.manifests.explain import Explanation, explain, explain_text, render
from lmsplit.manifests.explanation import ExcludedFor, Representative, Score
from lmsplit.manifests.lookup import SetAside
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.terminal import shown

FIRST = "data/d00000/part-00000"  # book-00, -01, -02 and -04
HOSTILE = "[red]x[/] [link=http://e]y[/link] :smile: \x1b[31m\x1b]0;t\x07\r\x08\x9b2J\u202e\u2066end"
AS_SHOWN = "[red]x[/] [link=http://e]y[/link] :smile: �[31m�]0;t� ��2J��end"


def raw(explanation: Explanation, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    console.print(render(explanation, width=width))
    return console.file.getvalue()


def printed(explanation: Explanation, width: int = 100) -> str:
    return " ".join(raw(explanation, width).split())


def explained(path: Path, doc_id: str, *, again: bool = False) -> Explanation:
    manifest = Manifest.open(path)
    return explain(manifest, doc_id, encoder=manifest.encoder() if again else None)


def test_render_begins_with_the_answer(golden_path):
    text = printed(explained(golden_path, "book-14"))
    assert text.startswith(
        'book-14 is in d00001 "boat, wind, sail" (boat, wind, sail) — distance 0.469, nearer than 65 % of its own; '
        'runner-up d00002 "stars, light, sun", margin 0.405 text '
    )


def test_render_says_where_it_comes_from_where_it_lies_and_why(golden_path, forger):
    text = printed(explained(golden_path, "book-00"))
    assert "source books: books.parquet row 0, group chapter-0 split train: its group 'chapter-0' was assigned" in text
    assert f"file {forger.path(FIRST)} row 0; 114 bytes" in text.replace(" row", " row")
    assert "kept license: –, year: 1990" in text
    assert "its domain book-08 Flatbread needs no oven" in text
    assert "set aside duplicate_id: books.parquet row 31" in text
    assert "history there since commit 0 (2026-11-23), placed so since commit 0 (2026-11-23)" in text
    digests = explained(golden_path, "book-00").digests
    assert f"digests commit {digests.commit[:12]}, rule {digests.rule[:12]}, encoder {digests.encoder[:12]}" in text


def test_render_says_whether_placing_again_confirms_it(golden_path, copy_path, forger):
    assert "placed again matches: d00000 at 0.572567; differs by 0, 0.0001 allowed" in printed(
        explained(golden_path, "book-00", again=True)
    )
    forger.value(FIRST, "distance", 0, lambda old: old + 0.01)
    text = printed(explained(copy_path, "book-00", again=True))
    assert "placed again DOES NOT MATCH: d00000 at 0.572567; differs by 0.01, 0.0001 allowed" in text


def test_render_says_what_became_of_what_is_not_published(golden_path):
    found = explained(golden_path, "notes.jsonl:9")
    assert printed(found).startswith(
        "notes.jsonl:9 was quarantined: it is in no domain set aside empty_text: notes.jsonl row 9 digests commit"
    )
    aside = (SetAside("bad_value", "no number", "a.jsonl", 3),)
    duplicate = replace(found, status="duplicate", set_aside=aside)
    assert "was set aside as a duplicate: it is in no domain set aside bad_value: a.jsonl row 3 (no number)" in printed(duplicate)
    gone = {"reason": "licence", "date": "2026-01-02", "version": 3}
    text = printed(replace(found, status="taken_down", set_aside=(), taken_down=gone))
    assert "was taken down: it is in no domain any more taken down 2026-01-02, licence, in commit 3" in text
    gone = {"reason": None, "date": None, "version": 3}
    assert "any more taken down in commit 3" in printed(replace(found, status="taken_down", set_aside=(), taken_down=gone))


def test_render_of_an_unknown_id_asks_whether_another_is_meant(golden_path):
    text = printed(explained(golden_path, "bok-02"))
    assert text.startswith("bok-02 is not in this manifest did you mean book-02, ")
    assert "did you mean" not in printed(explained(golden_path, "zzzz"))


def test_render_of_a_text_shows_the_nearest_domains(golden_path):
    manifest = Manifest.open(golden_path)
    text = printed(explain_text(manifest, "Sail the boat to the stars", manifest.encoder()))
    assert text.startswith('this text belongs in d00002 "stars, light, sun"')
    assert 'nearest d00002 "stars, light, sun" distance 0.598, behind by 0.000 d00001 "boat, wind, sail"' in text


def test_render_shows_what_a_student_is_sure_of_and_tokens_and_where_history_ends(golden_path):
    found = explained(golden_path, "book-00")
    student = replace(found, distance=None, percentile=None, margin=None, confidence=0.75, num_tokens=1234, history_ends="why")
    text = printed(student)
    assert '(bread, dough | *oven*), confidence 0.750; runner-up d00002 "stars, light, sun" text' in text
    assert "114 bytes, 1,234 tokens" in text
    assert "since commit 0 (2026-11-23) (or earlier: why)" in text


def test_render_says_how_many_more_there_are(golden_path):
    found = explained(golden_path, "book-00")
    many = replace(found, set_aside=found.set_aside * 11, kept={f"c{number}": "v" * 100 for number in range(10)})
    text = printed(many)
    assert text.count("duplicate_id: books.parquet row 31") == 8
    assert "row 31, … 3 more history" in text
    assert f"c7: {'v' * 59}…, … 2 more" in " ".join(raw(many, 2000).split())


def test_render_gives_a_representative_one_line_and_the_text_two(golden_path):
    found = replace(explained(golden_path, "book-00"), excerpt="word " * 60)
    lines = [line.rstrip() for line in raw(found, 60).split("\n")]
    start = next(number for number, line in enumerate(lines) if line.startswith("its domain"))
    assert lines[start].startswith("its domain    book-08  Flatbread")
    assert lines[start + 1].startswith(" " * 14 + "book-06  A loaf")
    assert all(line.endswith("…") for line in lines[start : start + 2])
    text = next(number for number, line in enumerate(lines) if line.startswith("text"))
    assert next(number for number, line in enumerate(lines) if line.startswith("source")) - text in {2, 3}


@pytest.mark.parametrize("width", [30, 60, 100, 300])
def test_render_does_not_obey_what_documents_say(golden_path, width):
    found = explained(golden_path, "book-00")
    hostile = replace(
        found,
        doc_id=HOSTILE,
        domain=HOSTILE,
        label=HOSTILE,
        keywords=(HOSTILE,),
        second_domain=HOSTILE,
        second_label=HOSTILE,
        excerpt=HOSTILE,
        source=HOSTILE,
        source_path=HOSTILE,
        group=HOSTILE,
        split_reason=HOSTILE,
        excluded_for=ExcludedFor(HOSTILE, 1.0),
        kept={HOSTILE: HOSTILE},
        representatives=(Representative(HOSTILE, HOSTILE, 0.5),),
        scores=(Score(HOSTILE, HOSTILE, 0.5, 0.5, 0.0),),
        set_aside=(SetAside(HOSTILE, HOSTILE, HOSTILE, 0),),
        taken_down={"reason": HOSTILE, "date": HOSTILE, "version": 0},
        nearest_ids=(HOSTILE,),
        history_ends=HOSTILE,
    )
    text = raw(hostile, width)
    assert "".join(text.split("\n")).isprintable()
    assert max(map(len, text.split("\n"))) <= width
    if width == 300:
        assert " ".join(text.split()).count(AS_SHOWN) >= 18


def test_ids_and_texts_with_markup_are_found_and_shown_as_they_are(copy_path, forger):
    forger.value(FIRST, "text", 0, f"{HOSTILE} in the text", card=False)
    text = printed(explained(copy_path, "book-00"), 300)
    assert f"text {AS_SHOWN} in the text" in text
    assert printed(explained(copy_path, HOSTILE), 300).startswith(f"{AS_SHOWN} is not in this manifest")


def test_shown_keeps_letters_of_every_script():
    assert shown("naïve 漢字 नमस्ते می\u200cخواهم 👩\u200d🚀") == "naïve 漢字 नमस्ते می\u200cخواهم 👩\u200d🚀"
    assert shown("a\u00a0b\n\u2028c\u3000d\ue000\udc80") == "a b  c d��"
