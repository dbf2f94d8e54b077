"""The Croissant description: mlcroissant finds nothing wrong with it and loads the documents; its structure holds without it."""

import datetime
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from lmsplit.manifests import croissant
from lmsplit.manifests.croissant import export_croissant
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.handover import export_manifest
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import FIXED_COLUMNS
from lmsplit.manifests.verify import verify_manifest

pytestmark = [  # of what mlcroissant does with rdflib and pandas
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning"),
]

HOSTILE = '"]} a | b <script>{"@id": "x"} \\ \x00 \u2028'


def described(manifest: Manifest, output: Path) -> dict[str, Any]:
    export_croissant(manifest, output)
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


def of_type(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each for each in content["distribution"] if each["@type"] == f"cr:{kind}"]


def record_sets(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["@id"]: each for each in content["recordSet"]}


def plain(record: dict[str, Any], record_set: str) -> dict[str, Any]:
    """Return a record as our reader has it: mlcroissant gives texts as bytes and fields by their ids."""
    values = {name.removeprefix(f"{record_set}/"): value for name, value in record.items()}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def rows_of(manifest: Manifest, domain: str | None = None) -> Iterator[dict[str, Any]]:
    for batch in manifest.documents(domain):
        yield from batch.to_pylist()


@pytest.mark.parametrize("place", ["manifest", ".", "elsewhere"])
def test_croissant_names_every_data_file_by_path_size_and_digest(copy_path: Path, tmp_path: Path, place: str) -> None:
    """Relative to the description, wherever it lies."""
    (tmp_path / "elsewhere").mkdir()
    directory = tmp_path / place
    content = described(Manifest.open(copy_path), directory / "croissant.json")
    files = of_type(content, "FileObject")
    assert [each["@id"] for each in files] == [entry.path for entry in Manifest.open(copy_path).data_files()]
    for each in files:
        assert not Path(each["contentUrl"]).is_absolute()
        data = (directory / each["contentUrl"]).read_bytes()
        assert (each["sha256"], each["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
    sets = {each["@id"]: each["includes"] for each in of_type(content, "FileSet")}
    assert sets.keys() == {"files/d00000", "files/d00001", "files/d00002"}
    assert sorted(path for paths in sets.values() for path in paths) == sorted(each["contentUrl"] for each in files)


def test_croissant_says_what_the_commit_says(golden_path: Path, tmp_path: Path) -> None:
    """Identity, version, date, licences, and the specification that it follows."""
    manifest = Manifest.open(golden_path)
    content = described(manifest, tmp_path / "croissant.json")
    assert content["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert manifest.digest in content["description"]
    assert "32 documents" in content["description"]
    assert (content["version"], content["datePublished"]) == ("0.0.0", manifest.commit.created_at)
    assert datetime.datetime.fromisoformat(content["datePublished"]).tzinfo is not None
    assert content["license"] == ["CC0-1.0"]


def test_croissant_has_a_field_for_every_column(golden_path: Path, tmp_path: Path) -> None:
    """With its type, its meaning and the column that it comes from."""
    sets = record_sets(described(Manifest.open(golden_path), tmp_path / "croissant.json"))
    assert list(sets) == ["domains", "d00000", "d00001", "d00002"]
    fields = {each["source"]["extract"]["column"]: each for each in sets["d00001"]["field"]}
    assert list(fields) == [*FIXED_COLUMNS, "license", "year"]
    assert {each["source"]["fileSet"]["@id"] for each in fields.values()} == {"files/d00001"}
    kinds = {name: each["dataType"] for name, each in fields.items()}
    assert [kinds[name] for name in ("text", "source_row", "margin", "year")] == [
        "sc:Text",
        "sc:Integer",
        "sc:Float",
        "sc:Integer",
    ]
    assert all(each["description"] for each in fields.values())


def test_croissant_holds_the_domain_table(golden_path: Path, tmp_path: Path) -> None:
    """Its rows are in the description itself."""
    manifest = Manifest.open(golden_path)
    rows = record_sets(described(manifest, tmp_path / "croissant.json"))["domains"]["data"]
    assert [row["domains/domain"] for row in rows] == ["d00000", "d00001", "d00002"]
    assert [row["domains/label"] for row in rows] == [domain.label for domain in manifest.domains]
    assert [row["domains/num_heldout"] for row in rows] == [domain.splits["heldout"] for domain in manifest.domains]
    assert [row["domains/num_bytes"] for row in rows] == [domain.num_bytes for domain in manifest.domains]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("string", "sc:Text"),
        ("bool", "sc:Boolean"),
        ("uint8", "sc:Integer"),
        ("float", "sc:Float"),
        ("date32[day]", "sc:Date"),
        ("timestamp[us]", "sc:DateTime"),
    ],
)
def test_croissant_names_the_type_of_a_kept_column(copy_path: Path, forger, tmp_path: Path, kind: str, expected: str) -> None:
    """Whichever a kept column may have; of any name."""
    forger.body(lambda body: body["columns"].update({"a/b #ç": kind}), card=False)
    fields = record_sets(described(Manifest.open(copy_path), tmp_path / "croissant.json"))["d00000"]["field"]
    field = next(each for each in fields if each["name"] == "a/b #ç")
    assert (field["@id"], field["dataType"]) == ("d00000/a%2Fb%20%23%C3%A7", expected)


def set_licences(forger: Any, values: list[str | None]) -> None:
    """Give the first four documents other licences, the values by turns."""
    forger.table("data/d00000/part-00000", lambda table: _with_licences(table, (values * 4)[:4]))


def _with_licences(table: pa.Table, values: list[str | None]) -> pa.Table:
    index = table.schema.get_field_index("license")
    return table.set_column(index, table.schema.field("license"), pa.array(values, pa.string()))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["MIT", None, "", " "], ["CC0-1.0", "MIT"]),
        (["x" * 10_000], None),
    ],
)
def test_croissant_lists_licences_by_name(copy_path: Path, forger, tmp_path: Path, values: list, expected: list | None) -> None:
    """The commonest first; blanks are none, and a whole licence text is no name."""
    set_licences(forger, values)
    assert described(Manifest.open(copy_path), tmp_path / "croissant.json").get("license") == expected


def test_croissant_lists_no_licences_where_there_are_very_many(copy_path: Path, forger, tmp_path: Path, monkeypatch) -> None:
    """The column has them."""
    monkeypatch.setattr(croissant, "_MAX_LICENCES", 2)
    set_licences(forger, ["MIT", "Apache-2.0"])
    assert "license" not in described(Manifest.open(copy_path), tmp_path / "croissant.json")


def test_croissant_has_no_licences_without_a_column(manifest_path: Path, tmp_path: Path) -> None:
    """And still describes the manifest."""
    assert "license" not in described(Manifest.open(manifest_path), tmp_path / "croissant.json")


def test_croissant_has_one_record_set_beyond_so_many_domains(golden_path: Path, tmp_path: Path, monkeypatch) -> None:
    """So that it can still be parsed; it holds all files."""
    monkeypatch.setattr(croissant, "MAX_RECORD_SETS", 2)
    content = described(Manifest.open(golden_path), tmp_path / "croissant.json")
    assert list(record_sets(content)) == ["domains", "documents"]
    (files,) = of_type(content, "FileSet")
    assert len(files["includes"]) == len(of_type(content, "FileObject")) == 8


def test_croissant_never_overwrites(golden_path: Path, tmp_path: Path) -> None:
    """Nor does it leave a half description."""
    (tmp_path / "croissant.json").touch()
    with pytest.raises(ConfigurationError, match=r"croissant\.json exists"):
        export_croissant(Manifest.open(golden_path), tmp_path / "croissant.json")


def test_manifest_with_a_description_is_as_sound_as_before(copy_path: Path, tmp_path: Path) -> None:
    """Neither verify nor `load_dataset` minds it."""
    export_croissant(Manifest.open(copy_path), copy_path / "croissant.json")
    assert verify_manifest(copy_path, deep=True) == []
    loaded = datasets.load_dataset(str(copy_path), "d00001", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 8, "heldout": 2}


def loaded_by_mlcroissant(path: Path, *, without_licence: bool = False) -> Any:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=str(path))
    assert dataset.metadata.issues.errors == set()
    assert len(dataset.metadata.issues.warnings) == without_licence  # it recommends one
    return dataset


@pytest.mark.parametrize("place", ["manifest", "."])
def test_mlcroissant_loads_the_documents(copy_path: Path, tmp_path: Path, place: str) -> None:
    """Every domain's records are the reader's rows; the description lies in the manifest, or above it."""
    manifest = Manifest.open(copy_path)
    export_croissant(manifest, tmp_path / place / "croissant.json")
    dataset = loaded_by_mlcroissant(tmp_path / place / "croissant.json")
    for domain in manifest.domains:
        records = [plain(record, domain.domain) for record in dataset.records(domain.domain)]
        assert records == list(rows_of(manifest, domain.domain))


def test_mlcroissant_loads_no_file_that_the_commit_does_not_name(copy_path: Path) -> None:
    """One that lies beside the others is left alone."""
    manifest = Manifest.open(copy_path)
    export_croissant(manifest, copy_path / "croissant.json")
    stray = copy_path / manifest.data_files("d00001")[0].path
    (stray.parent / "part-00099-0123456789abcdef.parquet").write_bytes(stray.read_bytes())
    assert len(list(loaded_by_mlcroissant(copy_path / "croissant.json").records("d00001"))) == 10


def test_mlcroissant_loads_the_domain_table(copy_path: Path, forger) -> None:
    """With labels that try to break out of the JSON."""
    forger.value("domains", "label", 1, HOSTILE)
    manifest = Manifest.open(copy_path)
    export_croissant(manifest, copy_path / "croissant.json")
    rows = [plain(record, "domains") for record in loaded_by_mlcroissant(copy_path / "croissant.json").records("domains")]
    assert [row["label"] for row in rows] == [domain.label for domain in manifest.domains]
    assert [row["num_documents"] for row in rows] == [domain.documents for domain in manifest.domains]


def test_mlcroissant_loads_one_record_set_of_all_documents(copy_path: Path, monkeypatch) -> None:
    """As there is beyond so many domains."""
    monkeypatch.setattr(croissant, "MAX_RECORD_SETS", 2)
    manifest = Manifest.open(copy_path)
    export_croissant(manifest, copy_path / "croissant.json")
    records = loaded_by_mlcroissant(copy_path / "croissant.json").records("documents")
    assert [plain(record, "documents") for record in records] == list(rows_of(manifest))


def test_mlcroissant_finds_a_description_elsewhere_valid(copy_path: Path, tmp_path: Path) -> None:
    """Its records do not load there; its files are found."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "croissant.json"
    export_croissant(Manifest.open(copy_path), path)
    urls = [each.content_url for each in loaded_by_mlcroissant(path).metadata.file_objects]
    assert urls
    assert all((path.parent / url).is_file() for url in urls)


def test_mlcroissant_loads_a_handover_of_a_published_manifest(manifest_path: Path, tmp_path: Path) -> None:
    """Records equal the reader's rows, on a manifest that the pipeline made."""
    handed = export_manifest(Manifest.open(manifest_path), tmp_path / "handed", ["d00002"])
    export_croissant(handed, tmp_path / "handed" / "croissant.json")
    dataset = loaded_by_mlcroissant(tmp_path / "handed" / "croissant.json", without_licence=True)
    assert [plain(record, "d00002") for record in dataset.records("d00002")] == list(rows_of(handed))
