"""show: the keys that programs rely on, and the view for people."""

import json

import pytest
from rich.console import Console

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.show import render, summary


@pytest.fixture
def golden(golden_path) -> Manifest:
    return Manifest.open(golden_path)


def printed(manifest: Manifest, domain: str | None = None, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render(manifest, domain, width=width))
    console.file.close()
    return " ".join(console.export_text().split())


def test_summary_has_the_keys_that_programs_rely_on(golden):
    found = json.loads(json.dumps(summary(golden)))
    for key in ("version", "commit", "documents", "tokens", "quarantined", "duplicates", "tier", "encoder", "splits", "domains"):
        assert key in found
    for domain in found["domains"]:
        for key in ("domain", "label", "keywords", "documents", "tokens", "bytes"):
            assert key in domain


def test_summary_counts_what_is_there(golden):
    found = summary(golden)
    assert (found["version"], found["commit"], found["documents"]) == (0, golden.digest, 32)
    assert (found["read"], found["quarantined"], found["duplicates"]) == (35, 2, 1)
    assert found["splits"] == {"train": 25, "heldout": 6, "excluded": 1}
    assert found["tokens"] is None
    assert [domain["documents"] for domain in found["domains"]] == [11, 10, 11]


def test_summary_of_a_domain_has_its_representatives(golden):
    (domain,) = summary(golden, "d00001")["domains"]
    assert domain["label"] == "boat, wind, sail"
    assert [set(item) for item in domain["representatives"]] == [{"doc_id", "excerpt"}] * 2


def test_summary_refuses_a_domain_that_is_not_there(golden):
    with pytest.raises(ManifestError, match="has no domain 'bread'"):
        summary(golden, "bread")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_render_shows_every_domain_and_its_label_as_it_is(golden, width):
    text = printed(golden, width=width)
    for domain in golden.domains:
        assert domain.domain in text
    assert "32 documents" in text
    assert "2 quarantined, 1 duplicates of 35 read" in text
    if width >= 100:
        assert "bread, dough | *oven*" in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_render_shows_tokens_when_they_are_counted(golden, copy_path, forger, width):
    assert "tokens" not in printed(golden, width=width)
    total = forger.count_words()
    counted = Manifest.open(copy_path)
    text = printed(counted, width=width)
    assert f"{total:,} tokens" in text
    for domain in counted.domains:
        assert f"kB {domain.num_tokens:,}" in text
    assert f"kB {counted.domains[1].num_tokens:,}" in printed(counted, "d00001", width=width)


def test_render_leaves_out_a_count_that_a_domain_lacks(copy_path, forger):
    forger.count_words()
    forger.value("domains", "num_tokens", 0, None)
    assert "tokens" in printed(Manifest.open(copy_path))


def test_render_of_a_domain_shows_its_documents(golden):
    text = printed(golden, "d00001")
    assert golden.domain("d00001").representatives[0] in text
    assert golden.domain("d00002").representatives[0] not in text
    assert "runner-up d00000 " in text
    assert "source " in text


def test_render_does_not_obey_markup_in_labels(forger, copy_path):
    def change(table):
        rows = table.to_pylist()
        rows[0] |= {"label": "[red]x[/red] [link=http://e]", "keywords": ["[bold]", "[/]"], "excerpts": ["[/nothing]", "[red]"]}
        return table.from_pylist(rows, table.schema)

    forger.table("domains", change)
    assert "[red]x[/red] [link=http://e]" in printed(Manifest.open(copy_path), width=200)
    assert "[/nothing]" in printed(Manifest.open(copy_path), "d00000", width=200)
