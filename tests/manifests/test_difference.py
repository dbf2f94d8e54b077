"""The difference as JSON with the keys that programs rely on, and as one screen for people."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lmsplit.manifests.diff import Diff, diff, render
from lmsplit.manifests.reader import Manifest
from tests.manifests.small_manifests import document, flat_rule, make_manifest


def printed(difference: Diff, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(difference, width=width))
    return console.export_text()


def pair(root: Path, num_domains: int = 3, *, id_prefix: str = "doc") -> tuple[Manifest, Manifest]:
    """Twelve documents a domain; of domain k, k mod 7 move on to the next; one text changes, one document goes, two come."""
    rows_a = [document(f"{id_prefix} {k}-{n}", k, margin=0.4) for k in range(num_domains) for n in range(12)]
    rows_b = [
        document(f"{id_prefix} {k}-{n}", (k + (n < k % 7)) % num_domains, margin=0.4)
        for k in range(num_domains)
        for n in range(12)
    ]
    rows_b[11] = document(f"{id_prefix} 0-11", 0, text="another")
    rows_b = [*rows_b[1:], document("new 1", 0), document("new 2", 1)]
    a = make_manifest(root / "a", rows_a, flat_rule(num_domains), configuration={"max_imbalance": None})
    prices = [0.1] + [0.0] * (num_domains - 1)
    b = make_manifest(
        root / "b", rows_b, flat_rule(num_domains, *prices), configuration={"max_imbalance": 1.5}, software={"numpy": "2"}
    )
    return a, b


def test_json_has_the_keys_that_programs_rely_on(tmp_path):
    """As one object that JSON can hold, with what was made above."""
    found = diff(*pair(tmp_path)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert [found[key] for key in ("unchanged", "moved", "changed", "added", "removed")] == [31, 3, 1, 2, 1]
    assert found["causes"] == {"price_moved": 3, "text_changed": 1}
    assert found["alignment"] == {"d00000": "d00000", "d00001": "d00001", "d00002": "d00002"}
    assert 0 < found["adjusted_rand"] < 1
    assert found["bytes"].keys() == {"unchanged", "moved", "changed", "added", "removed"}
    assert found["a"].keys() == {"location", "version", "commit", "documents", "domains", "encoder"}
    assert (found["a"]["documents"], found["b"]["documents"], found["a"]["domains"]) == (36, 37, 3)
    assert {"a": "d00001", "b": "d00002", "documents": 1, "tokens": None, "bytes": 7} in found["churn"]
    assert found["rule"] == {
        "encoder_changed": False,
        "centroids_moved": 0,
        "mean_centroid_distance": 0.0,
        "prices_moved": 1,
        "configuration": {"max_imbalance": {"a": None, "b": 1.5}},
    }
    assert found["software"] == {"numpy": {"a": None, "b": "2"}}
    assert [each["status"] for each in found["examples"]] == ["changed", *["moved"] * 3, "added", "added", "removed"]
    assert set(found["examples"][0]) == {
        *("doc_id", "status", "cause", "domain_a", "domain_b", "margin_a", "margin_b", "source_path", "source_row")
    }


@pytest.mark.parametrize("width", [80, 100, 160])
def test_render_says_what_happened(tmp_path, width):
    """The sentence, causes, aligned domains with the largest flow elsewhere, examples and the configuration."""
    text = " ".join(printed(diff(*pair(tmp_path)), width).split())
    assert "of 36 documents 31 stay, 3 move, 1 stay with another text, 1 gone; 2 new" in text
    assert "price_moved 3 the domains' prices" in text
    assert "12 11 83.3% d00000 2" in text  # of domain 2, two moved on, and one came
    assert "configuration max_imbalance: None in A, 1.5 in B" in text
    assert "doc 0-11 changed text_changed d00000 d00000" in text
    assert "leak" not in text


def test_render_of_many_domains_is_one_screen(tmp_path):
    """The sixteen domains that lose most: those that lose six of twelve, then those that lose five."""
    text = printed(diff(*pair(tmp_path, 60)))
    assert len(text.splitlines()) < 45
    assert "44 domains more with --json" in text
    table = [line.split()[0] for line in text.splitlines() if " label of " in line]
    assert table == [f"d{domain:05d}" for lost in (6, 5) for domain in range(60) if domain % 7 == lost]


def test_render_of_the_same_manifest_says_so(golden_path):
    """No causes, no examples."""
    golden = Manifest.open(golden_path)
    text = printed(diff(golden, golden))
    assert "the same" in text
    assert "of 32 documents 32 stay, 0 move" in text
    assert "cause" not in text


def test_render_warns_of_held_out_documents_that_are_trained_on(tmp_path):
    """In words, not in colour alone."""
    sides = (make_manifest(tmp_path / split, [document("x", 0, split=split)], flat_rule(1)) for split in ("heldout", "train"))
    text = printed(diff(*sides))
    assert "1 documents are in another split" in text
    assert "1 held-out documents of A are trained on in B: evaluation leaks" in text


def test_render_shows_data_and_does_not_obey_it(tmp_path):
    """Markup stays as it is; control characters become visible ones, line ends spaces."""
    text = printed(diff(*pair(tmp_path, id_prefix="[red]x[/red]\x1b[31m\n\u202e")), 200)
    assert "[red]x[/red]\N{REPLACEMENT CHARACTER}[31m \N{REPLACEMENT CHARACTER} 0-11" in text
    assert not {"\x1b", "\u202e"} & set(text)
