"""The page in a real browser: it loads nothing, sorts, shows its pictures, and runs nothing that a run wrote."""

import base64
import dataclasses
import hashlib
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glr_lightning.reporting.document import Document, Picture, Section
from glr_lightning.reporting.page import page
from glr_lightning.reporting.report import report
from glr_lightning.reporting.tables import Table
from tests.checks.reports import MASKED, make_run, row, standard

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = "<script>document.title='owned'<\\script><img src=x onerror=document.title='owned'>"
browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of three runs, one of them with a name that is a script and a note that is one too."""
    folder = tmp_path_factory.mktemp("page")
    note = "<script>document.title='owned'</script>\" onmouseover=\"x"
    marked = dataclasses.replace(MASKED, note=note)
    runs = [
        make_run(folder / "runs" / "lrtz", rows=[*standard(), marked], accuracy=0.9),
        make_run(folder / "runs" / "bp", "experiment=bp", rows=standard(190, 5), accuracy=0.95),
        make_run(folder / "runs" / HOSTILE, "experiment=lrt", rows=[row("clean", 20)], accuracy=0.1),
    ]
    report(runs, folder / "out")
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


SAY = "const say = (...words) => document.querySelector('output').append(words.join(' ') + ';');"


def dom(text: str, folder: Path, script: str = "") -> str:
    """What a browser makes of a page, after a script that was added to it and may write into <output>.

    The page's policy would stop that script, so it is added there too.
    """
    if script:
        added = SAY + script
        policy = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(added.encode()).digest()).decode()}' "
        text = text.replace("script-src ", policy)
        text = text.replace("</body>", f"<output></output><script>{added}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    return _dumped(folder / "page.html")


def _dumped(path: Path) -> str:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    command = [str(BROWSER), *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def said(text: str) -> list[str]:
    found = re.search(r"<output>(.*?)</output>", text, re.DOTALL)
    return unescape(found[1]).rstrip(";").split(";") if found else []


SORT = """
const table = document.querySelector('#accuracy-under-threat table');
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent[0]).join('');
const heading = (place) => table.tHead.rows[0].cells[place];
const click = (place) => { heading(place).querySelector('button').click(); say(names(), heading(place).ariaSort); };
say(names());
click(1); click(1); click(0);
say([...table.tHead.querySelectorAll('[aria-sort]')].length);
click(2); click(2);
"""


@browser
def test_a_click_on_a_heading_sorts(written: str, tmp_path: Path) -> None:
    assert said(dom(written, tmp_path, SORT)) == [
        "<bl",
        "bl< descending",  # clean: 95, 90, 10
        "<lb ascending",
        "<bl ascending",
        "1",
        "bl< descending",  # the third was not attacked: last, whichever the order
        "lb< ascending",
    ]


@browser
def test_headings_are_buttons_and_pictures_are_there(written: str, tmp_path: Path) -> None:
    script = """
    addEventListener('load', () => {
      const all = [...document.images];
      say(all.length, all.every(image => image.naturalWidth > 100 && image.alt));
      const buttons = [...document.querySelectorAll('thead th')].map(th => th.firstElementChild);
      buttons[0].focus();
      say(buttons.every(each => each.matches('button')), document.activeElement === buttons[0]);
    });"""
    assert said(dom(written, tmp_path, script)) == ["5 true", "true true"]


LOADED = """
addEventListener('load', () => setTimeout(() => {
  const names = performance.getEntriesByType('resource').map(entry => entry.name);
  say(names.filter(name => !name.startsWith('data:')));
}, 300));
"""


@browser
def test_nothing_is_loaded(written: str, tmp_path: Path) -> None:
    free = re.sub("<meta http-equiv[^>]*>", "", written)  # its policy would hide an attempt
    assert said(dom(free, tmp_path, LOADED)) == [""]
    other = "http://127.0.0.1:9/other.png"
    assert said(dom(free.replace("</main>", f'<img src="{other}"></main>'), tmp_path, LOADED)) == [other]


@browser
def test_what_a_run_wrote_stays_text(written: str, tmp_path: Path) -> None:
    shown = dom(written, tmp_path)
    assert "<title>Report on 3 runs</title>" in shown
    control = shown.replace("</main>", "<script>document.title='owned'</script></main>")
    assert "<title>Report on 3 runs</title>" in dom(control, tmp_path)  # the policy stops even a script that got in
    without = re.sub("<meta http-equiv[^>]*>", "", control)
    assert "<title>owned</title>" in dom(without, tmp_path)  # and it is a script that would have run


class Links(HTMLParser):
    """Whatever could load something or run; and all tags with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[tuple[str, ...]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.tags.append((tag, *(name for name, _ in attrs)))
        for name, value in attrs:
            if name in ("src", "href", "srcset", "style") or name.startswith("on"):
                self.found.append(f"{name}={value}")


def test_the_page_refers_to_itself_alone_and_runs_one_script(written: str) -> None:
    links = Links()
    links.feed(written)
    assert links.scripts == 1
    assert all(re.match(r"(href=#[a-z0-9-]+|src=data:image/png;base64,[A-Za-z0-9+/=]+)$", link) for link in links.found)
    assert "url(" not in written
    assert "@import" not in written
    anchors = {link.removeprefix("href=#") for link in links.found if link.startswith("href")}
    assert anchors == set(re.findall(r'<section id="([^"]*)"', written))


def test_no_text_wherever_it_stands_is_a_tag() -> None:
    def tags(text: str) -> list[tuple[str, ...]]:
        table = Table([[text, text], [text]], [[text, f"{text} †1"]], [f"†1 {text}", text])
        parts = [table, Picture("a.png", text, b""), Picture(f"{text}.png", "b", b""), text]
        links = Links()
        links.feed(page(Document(text, text, [Section(text, parts)])))
        return links.tags

    assert tags('<b onclick="x">\'"><script>&lt;</script><!--') == tags("harmless")


def test_a_footnote_is_said_at_its_sign(written: str) -> None:
    assert re.search(r'89\.00<sup title="†1 unreliable \(&lt;script&gt;[^"]*">†1</sup>', written)
