"""The report in a real headless Chromium, from disk: what a person and a keyboard can do with it, and what a text cannot."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.report import write_report
from lmsplit.manifests.report_facts import Limits
from tests.manifests.hostile import publish_hostile

selenium = pytest.importorskip("selenium")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: tests/install_chromium"),
]
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1000",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser, and what it logs."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, manifest_path: Path) -> dict[str, Path]:
    """Two reports, one of a manifest whose texts would do harm."""
    directory = tmp_path_factory.mktemp("reports")
    found = {"sound": manifest_path, "hostile": publish_hostile(directory)}
    for name, path in found.items():
        manifest = Manifest.open(path)
        write_report(manifest, directory / f"{name}.html", encoder=manifest.encoder(), limits=Limits(map_documents=120))
    return {name: directory / f"{name}.html" for name in found}


@pytest.fixture
def page(browser: Chrome, reports: dict[str, Path]) -> Chrome:
    """The sound report, just opened."""
    browser.get(reports["sound"].as_uri())
    return browser


def rows(browser: Chrome, table: str, column: int) -> list[str]:
    """Return the values of a column, of the rows that are to be seen."""
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr:not(.hidden)')]"
        ".map(row => row.cells[arguments[1]].dataset.value ?? row.cells[arguments[1]].textContent.trim())"
    )
    found: list[str] = browser.execute_script(script, table, column)
    return found


@pytest.mark.parametrize("name", ["sound", "hostile"])
def test_report_opens_without_an_error_or_a_request(browser: Chrome, reports: dict[str, Path], name: str) -> None:
    """Nothing in the console, nothing loaded, the map drawn; and no text has run."""
    browser.get(reports[name].as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(browser.find_elements(By.CSS_SELECTOR, "#points circle")) == 120
    assert browser.execute_script("return window.harmed") is None
    assert browser.execute_script("return [...document.querySelectorAll('main [onclick], main img')].length") == 0


def test_report_of_harmful_texts_shows_them_as_text(browser: Chrome, reports: dict[str, Path]) -> None:
    """Also where the script puts them: in the map's card."""
    browser.get(reports["hostile"].as_uri())
    browser.find_element(By.ID, "points").send_keys(Keys.ARROW_RIGHT)
    card = browser.find_element(By.ID, "card")
    assert "<script>window.harmed = true</script>" in card.text
    assert "<b onclick=" in card.text
    assert browser.execute_script("return window.harmed") is None


def test_report_sorts_by_mouse_and_keyboard(page: Chrome) -> None:
    """Numbers as numbers, the largest first; once more and the smallest is."""
    header = next(each for each in page.find_elements(By.CSS_SELECTOR, "#domain-table thead button") if each.text == "documents")
    header.click()
    descending = list(map(int, rows(page, "#domain-table", 3)))
    assert descending == sorted(descending, reverse=True)
    header.send_keys(Keys.ENTER)
    assert list(map(int, rows(page, "#domain-table", 3))) == descending[::-1]
    sort = page.execute_script("return document.querySelector('#domain-table [aria-sort]').getAttribute('aria-sort')")
    assert sort == "ascending"


def test_report_search_leaves_what_holds_the_word(page: Chrome) -> None:
    """Rows that do not are hidden, points fade, and the number is said."""
    domain = rows(page, "#domain-table", 0)[1]
    box = page.find_element(By.ID, "search")
    box.send_keys(domain)
    assert rows(page, "#domain-table", 0) == [domain]
    assert f"hold “{domain}”" in page.find_element(By.ID, "found").text
    assert 0 < len(page.find_elements(By.CSS_SELECTOR, "#points circle.off")) < 120
    box.clear()
    box.send_keys(Keys.SPACE, Keys.BACKSPACE)
    assert len(rows(page, "#domain-table", 0)) == 4
    assert page.find_elements(By.CSS_SELECTOR, "#points circle.off") == []


def test_report_map_shows_documents(page: Chrome) -> None:
    """Under the mouse, and by the arrow keys; a domain alone at a press of its button."""
    card = page.find_element(By.ID, "card")
    assert card.text == "No document chosen."
    documents = page.execute_script("return JSON.parse(document.getElementById('data').textContent).map")
    first = min(documents, key=lambda each: each["y"])  # the topmost: there are others below
    hover = "document.querySelectorAll('#points circle')[arguments[0]].dispatchEvent(new MouseEvent('mouseenter'))"
    page.execute_script(hover, documents.index(first))
    assert first["id"] in card.text
    assert first["text"][:40] in card.text
    page.find_element(By.ID, "points").send_keys(Keys.ARROW_DOWN)
    assert first["id"] not in card.text
    page.find_element(By.CSS_SELECTOR, f".pick[data-domain='{first['domain']}']").send_keys(Keys.ENTER)
    others = sum(each["domain"] != first["domain"] for each in documents)
    assert len(page.find_elements(By.CSS_SELECTOR, "#points circle.off")) == others


def test_report_has_a_light_and_a_dark_side(page: Chrome) -> None:
    """The button changes the paper, says what it does next, and its state is known to a screen reader."""
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.execute_script(paper)
    button = page.find_element(By.ID, "theme")
    pressed = button.get_attribute("aria-pressed")
    button.click()
    assert page.execute_script(paper) != before
    assert button.get_attribute("aria-pressed") != pressed


def test_report_can_be_read_by_a_screen_reader(page: Chrome) -> None:
    """Every table has a name or stands in a named part, every control has a name, headings do not skip a level."""
    unnamed = (
        "return [...document.querySelectorAll('button, input, a, svg[role]')].filter(each => each.getClientRects().length && "
        "!(each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length)).length"
    )
    assert page.execute_script(unnamed) == 0
    assert page.execute_script("return [...document.querySelectorAll('thead th')].every(th => th.scope === 'col')")
    levels = page.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.execute_script("return document.documentElement.lang") == "en"
    page.execute_script("document.activeElement.blur()")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the content"


def test_report_is_whole_without_scripts(browser: Chrome, reports: dict[str, Path]) -> None:
    """Every table is in the file itself; only the map asks for the script."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(reports["sound"].as_uri())
        seen = browser.find_element(By.TAG_NAME, "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "Every domain; its name is made of its keywords." in seen
    assert "documents of the smallest margins" in seen
    assert "The map is drawn by a script" in seen
