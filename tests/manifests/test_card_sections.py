"""The card's sections say in words what commit, plan and rule say; what cannot be read is damage."""

import json

import pyarrow as pa
import pytest

from lmsplit.manifests.card import render_card
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.handover import export_manifest
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from tests.manifests.cards import table_under, tables_of


def test_card_lists_the_splits(golden_path):
    """With their shares."""
    rows = table_under(render_card(Manifest.open(golden_path)), "Splits", "split", "documents", "share", "what for")
    assert [row[:3] for row in rows] == [["train", "25", "78.12%"], ["heldout", "6", "18.75%"], ["excluded", "1", "3.12%"]]


def test_card_says_what_the_encoder_reads(forger, copy_path, golden_path):
    """Tokens and characters of a sentence model; of a table of token vectors the characters only."""
    assert "It reads a text's first 2,000 characters." in render_card(Manifest.open(golden_path))
    path = next(path for path in golden_path.glob("placement/*.json"))
    rule = json.loads(path.read_text())
    for pooling, expected in (
        ("Transformer > Pooling(mean)", "It reads a text's first 128 tokens, within its first 4,000 characters."),
        ("StaticEmbedding", "It reads a text's first 4,000 characters."),
    ):
        rule["encoder"] = {"kind": "sentence-transformers", "max_tokens": 128, "max_characters": 4000, "pooling": pooling}
        forger.file(Manifest.open(copy_path).body.placement, json.dumps(rule).encode())
        assert expected in (copy_path / "README.md").read_text()


def test_card_names_the_model_and_its_digest(forger, copy_path):
    """The hub id is data, too."""
    about = {"kind": "sentence-transformers", "model": "a/b|<c>", "weights_sha256": "0f" * 32, "max_tokens": 128}
    forger.body(lambda body: body["encoder"].update(about | {"device": "cpu", "precision": "float32"}))
    text = (copy_path / "README.md").read_text()
    assert rf"a/b\|\<c\> (float32, 128 tokens): weights `{'0f' * 32}`." in text


GATE = {
    "imbalance": 2.5,
    "imbalance_by": "bytes",
    "coherence": 0.125,
    "stability": 0.5,
    "sample_documents": 1234,
    "sample_imbalance": 2.25,
    "balance": None,
    "findings": [],
}


def finding(number):
    return {
        "code": "near_empty",
        "where": f"d{number:05d}",
        "expected": "at least | 10",
        "found": "2 <b>",
        "remedy": "fewer domains",
    }


def test_card_says_what_the_gate_found(forger, copy_path):
    """In words, and names the domains again among the limits."""
    findings = [{**finding(0), "code": "imbalance", "where": "fit"}, finding(1)]
    forger.body(lambda body: body.update(gate=GATE | {"findings": findings}))
    text = (copy_path / "README.md").read_text()
    assert "- The largest domain is 2.50 times the mean, in bytes." in text
    assert "- The domains explain 12.5% of the variance of 1,234 sampled vectors." in text
    assert "agree on the domains to 0.50" in text
    assert r"- near\_empty, d00001: found 2 \<b\>, expected at least \| 10. To do: fewer domains." in text
    assert "- d00001: look at them before training on them" in text


def test_card_lists_ten_findings_and_counts_the_others(forger, copy_path):
    """They may be thousands."""
    forger.body(lambda body: body.update(gate=GATE | {"findings": [finding(number) for number in range(13)]}))
    text = (copy_path / "README.md").read_text()
    assert text.count("To do: fewer domains.") == 10
    assert "- and 3 more findings, in the commit." in text


def test_card_says_that_the_gate_found_nothing_or_was_not_run(forger, copy_path, golden_path):
    """These are not the same."""
    assert "## Quality gate\n\nNot run.\n" in render_card(Manifest.open(golden_path))
    balance = {"max_imbalance": 1.5, "sampling_error": 0.1, "cap": 1.25, "imbalance_before": 3.0, "coherence_before": 0.2}
    forger.body(lambda body: body.update(gate=GATE | {"stability": None, "balance": balance}))
    text = (copy_path / "README.md").read_text()
    assert "\n\nNo findings.\n\n## Provenance" in text
    assert "bounded at 1.5 times the mean: before, the sample had 3.00 times, and 20.0% of its variance was explained." in text
    assert "agree on the domains" not in text


def test_card_says_how_the_manifest_was_made(golden_path, manifest_path):
    """Input files, software and tier."""
    text = render_card(Manifest.open(golden_path))
    assert "- Input files: 2, listed in `plans/72309534e51f4931.json`." in text
    assert "- Software: lmsplit 0.1.0, numpy 2.4.6, pyarrow 26.0.1." in text
    assert "It follows commit" not in text
    published = (manifest_path / "README.md").read_text()
    assert "- Input files: 4, listed in" in published
    assert "resembles a held-out document by at least 0.8" in published
    assert "of the groups " in published


def test_card_says_what_it_follows_and_what_it_was_made_from(forger, copy_path, golden_path, tmp_path):
    """The parent of a refit; the manifest of a hand-over."""
    forger.body(lambda body: body.update(parent="ab" * 32))
    assert f"- It follows commit `{'ab' * 32}`." in (copy_path / "README.md").read_text()
    handed = export_manifest(Manifest.open(golden_path), tmp_path / "handed", ["d00001", "d00002"])
    text = (tmp_path / "handed" / "README.md").read_text()
    assert f"- A hand-over of d00001, d00002 out of commit `{Manifest.open(golden_path).digest}`." in text
    assert "their names have gaps" in text
    assert "load_dataset(path, 'd00001', split='train')" in text
    assert text == render_card(handed)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({"near_duplicate_threshold": None}, "were not searched for"),
        ({"near_duplicate_threshold": 0.5}, "by at least 0.5 (Jaccard"),
        ({}, "resembles a held-out document (Jaccard"),
    ],
)
def test_card_says_what_counts_as_a_near_duplicate(forger, copy_path, configuration, expected):
    """Also where the configuration does not say."""
    forger.body(lambda body: body.update(configuration=configuration))
    assert expected in (copy_path / "README.md").read_text()


def test_card_shows_the_tree_of_a_hierarchy(forger, copy_path):
    """A column more, where domains have paths of more than one branch."""
    paths = pa.array([[0, 0], [0, 1], [1]], pa.list_(pa.int32()))
    forger.table("domains", lambda table: table.set_column(1, table.schema.field("path"), paths), card=False)
    rows = tables_of(render_card(Manifest.open(copy_path)))[0]
    assert rows[0][:3] == ["domain", "path", "label"]
    assert [row[1] for row in rows[1:]] == ["0.0", "0.1", "1"]


@pytest.mark.parametrize("role", ["plan", "placement"])
@pytest.mark.parametrize("data", [b"not json", b"[]", b'{"files": 3, "encoder": {}}'])
def test_card_cannot_be_made_of_a_damaged_plan_or_rule(forger, copy_path, role, data):
    """As damage, not as a traceback; verify reports the file."""
    path = forger.file(getattr(Manifest.open(copy_path).body, role), data, card=False)
    with pytest.raises(DamagedError, match=r"is damaged \(.*\): run lmsplit verify") as caught:
        render_card(Manifest.open(copy_path))
    assert caught.value.path == path
    if role == "plan":  # of another rule, the data files are wrong before it comes to the card
        assert [(each.code, each.where) for each in verify_manifest(copy_path)] == [("file_damaged", path)]
