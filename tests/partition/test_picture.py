"""The picture: written, valid, marked with the recommended number, and the same twice."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.partition.picture import draw
from lmsplit.partition.suggest import Assessment, Recommendation

ASSESSMENTS = [
    Assessment(2, 900, 0.9, 0.1, 1.0, 0.8, 1.2),
    Assessment(3, 900, 0.8, 0.2, 0.99, 0.7, 1.4),
    Assessment(4, 900, 0.75, 0.25, -0.01, 0.0, 2.4),
]
RECOMMENDATION = Recommendation(3, "because")


def drawn(path: Path) -> bytes:
    draw(ASSESSMENTS, RECOMMENDATION, path)
    return path.read_bytes()


def test_svg_says_what_it_shows(tmp_path: Path) -> None:
    root = ElementTree.fromstring(drawn(tmp_path / "a.svg"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"2", "3", "4", "number of domains k", "stability", "largest domain", "smallest domain"} <= set(texts)
    assert "Number of domains: 3 recommended" in texts
    assert "k = 3" in texts


def test_png_is_an_image(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert (height, width) == (1080, 960)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_same_input_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    assert drawn(tmp_path / f"a{suffix}") == drawn(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("only", [ASSESSMENTS[0], ASSESSMENTS[2]])
def test_one_number_can_be_drawn(tmp_path: Path, only: Assessment) -> None:
    draw([only], Recommendation(only.k, "the only one"), tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")


def test_settings_of_matplotlib_are_left_as_they_were(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    drawn(tmp_path / "a.svg")
    assert dict(mpl.rcParams) == before


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.gif: a picture's name ends in \.svg or \.png, found '\.gif'"):
        drawn(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match="the picture needs matplotlib, which is not installed: pip install matplotlib"):
        drawn(tmp_path / "a.svg")
