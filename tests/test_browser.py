"""In a real browser: the report as readers see it, and a notebook that a reader executes in JupyterLab."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

ROOT = Path(__file__).parents[1]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1400, "height": 900}}
PAPER = {"viewport": {"width": 794, "height": 1123}}  # A4 at 96 dots an inch
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
MISSING = """() => Array.from(document.images).filter(image => !image.naturalWidth).length"""
DRAWN = (
    """() => Array.from(document.querySelectorAll('.jp-RenderedImage img')).some(image => image.naturalWidth > 500)"""
)
BACKGROUND = """() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"""
CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3).map(p => p / 255)
    .map(p => p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => {
    const colour = getComputedStyle(node).backgroundColor;
    return (parts(colour)[3] ?? 1) > 0 ? colour : ground(node.parentElement);
  };
  const all = Array.from(document.querySelectorAll('.mark, tr.claim td, tr.claim a, .made')).map(node => {
    const [low, high] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
  return [Math.min(...all), all.length];
}"""
ANCHORS = """() => Array.from(document.querySelectorAll('[id]')).map(element => element.id)"""
LINKS = """() => Array.from(document.querySelectorAll('a[href]')).map(link => link.href)"""


class Watched:
    """A page of its own, and what must not happen on it: errors on the console, requests of anything outside."""

    def __init__(self, browser, inside: tuple[str, ...], **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.inside = (*inside, "data:", "blob:")
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("websocket", lambda socket: self._asked(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)

    def _asked(self, url: str) -> None:
        if not url.startswith(self.inside):
            self.outside.append(url)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def pages(site) -> list[Path]:
    return sorted(site.glob("*.html"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_report_is_readable(browser, pages, device, javascript, scheme):
    """Nothing outside is asked for, nothing goes wrong, no page scrolls sideways, every picture is there."""
    options = {**device, "java_script_enabled": javascript, "color_scheme": scheme}
    for path in pages:
        with Watched(browser, ("file://",), **options) as watched:
            watched.page.goto(path.as_uri())
            assert (watched.outside, watched.errors) == ([], []), path.name
            assert watched.page.evaluate(WIDER) == 0, path.name
            assert watched.page.evaluate(MISSING) == 0, path.name
            dark = sum(watched.page.evaluate(BACKGROUND)) < 3 * 128
            assert dark == (scheme == "dark"), path.name


@pytest.mark.parametrize("javascript", [True, False], ids=["javascript", "no javascript"])
def test_claims_are_filtered_and_searched(browser, site, javascript):
    """Boxes do their work without JavaScript; only with it there is a field to search."""
    with Watched(browser, ("file://",), **DESKTOP, java_script_enabled=javascript) as watched:
        watched.page.goto((site / "index.html").as_uri())
        rows = watched.page.locator("tr.claim")
        shown = watched.page.locator("tr.claim:visible")
        every = rows.count()
        assert every > 50 and shown.count() == every
        fails = watched.page.locator("tr.of-does-not-hold").count()
        watched.page.get_by_label("does not hold").uncheck()
        assert 0 < shown.count() == every - fails
        watched.page.get_by_label("does not hold").check()
        for name in ("hdee", "noloco", "skippipe", "swarm", "syncpcn"):
            watched.page.locator(f"#show-{name}").uncheck()
        assert shown.count() == watched.page.locator("tr.of-checkfree").count()
        search = watched.page.get_by_label("Search")
        assert search.is_visible() == javascript
        if javascript:
            search.fill("CHECKFREE degrades slowly")
            assert [row.split()[0] for row in shown.all_inner_texts()] == ["C6"]
            assert watched.page.locator("#found").inner_text() == f"1 of {every} claims"
        assert watched.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_can_be_read(browser, site, scheme):
    """As WCAG 2.2 measures it, on the ground that the browser really draws."""
    with Watched(browser, ("file://",), **DESKTOP, color_scheme=scheme) as watched:
        watched.page.goto((site / "index.html").as_uri())
        worst, seen = watched.page.evaluate(CONTRAST)
        assert seen > 100 and worst >= 4.5


def test_a_link_to_a_claim_leads_to_it(browser, site):
    with Watched(browser, ("file://",), **DESKTOP) as watched:
        for place in ("checkfree.html#C6", "noloco.html#T2,-FSDP", "checkfree.html#figure-4a"):
            watched.page.goto(f"{site.as_uri()}/{place}")
            top = watched.page.evaluate("document.querySelector(':target').getBoundingClientRect().top")
            assert -1 <= top < 200, place


def test_the_report_fits_on_paper(browser, pages):
    for path in pages:
        with Watched(browser, ("file://",), **PAPER, color_scheme="dark") as watched:
            watched.page.goto(path.as_uri())
            watched.page.emulate_media(media="print")
            assert watched.page.evaluate(WIDER) == 0, path.name
            assert min(watched.page.evaluate(BACKGROUND)) == 255, f"{path.name} is printed dark"


def test_links_within_the_report_lead_somewhere(browser, pages):
    found, links = {}, set()
    with Watched(browser, ("file://",)) as watched:
        for path in pages:
            watched.page.goto(path.as_uri())
            found[path.as_uri()] = set(watched.page.evaluate(ANCHORS))
            links |= set(watched.page.evaluate(LINKS))
        within = {link for link in links if link.startswith("file://")}
        assert len(within) > 100
        for link in within:
            target, _, anchor = link.partition("#")
            if not target.endswith(".html"):
                assert Path(unquote(urlparse(target).path)).is_file(), link
                continue
            assert target in found and (not anchor or {anchor, unquote(anchor)} & found[target]), link
        some = next(link for link in sorted(within) if "#run-" in link)
        watched.page.goto(some)
        row = watched.page.locator(f"[id='{some.partition('#')[2]}']")
        assert row.is_visible(), "a link to a run does not open the list that it is in"


def test_what_is_wrong_with_a_page_would_be_noticed(browser, tmp_path):
    path = tmp_path / "a.html"
    picture = "<img src='http://localhost:9/x.png'>"
    path.write_text(f"<p style='width: 2000px'>wide{picture}<script>missing()</script>")
    with Watched(browser, ("file://",), **PHONE) as watched:
        watched.page.goto(path.as_uri())
        assert watched.outside == ["http://localhost:9/x.png"]
        assert any("missing is not defined" in error for error in watched.errors)
        assert watched.page.evaluate(WIDER) > 0 and watched.page.evaluate(MISSING) == 1


class Lab:
    """A notebook in JupyterLab, worked by mouse and keyboard; what it holds is read from JupyterLab itself."""

    NOTEBOOK = "const widget = globalThis.jupyterapp?.shell.currentWidget;"
    NOTEBOOK += "const all = Array.from(widget?.content?.model?.cells ?? []);"
    CODE = "all.filter(cell => cell.type == 'code' && cell.sharedModel.getSource().trim())"

    def __init__(self, page, address: str, name: str):
        self.page = page
        page.set_default_timeout(300_000)  # ms; of a busy machine
        page.goto(f"{address}/lab/tree/{name}/{name}.ipynb")
        page.wait_for_function(f"() => {{ {self.NOTEBOOK} return {self.CODE}.length > 0 }}")
        page.wait_for_function(f"() => {{ {self.NOTEBOOK} return {self.STATUS} == 'idle' }}")

    STATUS = "widget?.sessionContext?.session?.kernel?.status"

    def cells(self) -> list[dict]:
        """The code cells, as in the file."""
        return self.page.evaluate(f"() => {{ {self.NOTEBOOK} return {self.CODE}.map(cell => cell.toJSON()) }}")

    def idle(self) -> bool:
        return self.page.evaluate(f"() => {{ {self.NOTEBOOK} return {self.STATUS} }}") == "idle"

    def show(self, text: str, where: str = "center") -> None:
        """Scroll to the first code cell with this text, and make it the active one."""
        self.page.evaluate(
            f"async ([text, where]) => {{ {self.NOTEBOOK} const content = widget.content; content.activeCellIndex = "
            "all.findIndex(cell => cell.type == 'code' && cell.sharedModel.getSource().includes(text)); "
            "await content.scrollToItem(content.activeCellIndex, where) }",
            [text, where],
        )

    def edit(self, old: str, new: str) -> None:
        """Type another text in place of one."""
        self.show(old)
        before = self.page.evaluate(
            f"() => {{ {self.NOTEBOOK} return widget.content.activeCell.model.sharedModel.source }}"
        )
        editor = self.page.locator(".jp-Notebook .jp-Cell.jp-mod-active .cm-content")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(before.replace(old, new))

    def menu(self, menu: str, item: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()

    def run_all(self, seconds: float) -> set[int]:
        """Run all cells and wait until all are done, or one failed; the numbers of those that showed a progress bar."""
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")
        bars: set[int] = set()
        until = time.monotonic() + seconds
        while True:
            idle, cells = self.idle(), self.cells()
            shown = [output for cell in cells for output in cell["outputs"]]
            bars |= {n for n, cell in enumerate(cells, 1) if any("%|" in text_of(o) for o in cell["outputs"])}
            if any(output["output_type"] == "error" for output in shown):
                return bars
            if idle and all(cell["execution_count"] for cell in cells):
                return bars
            done = sum(bool(cell["execution_count"]) for cell in cells)
            assert time.monotonic() < until, f"{done} of {len(cells)} cells done"
            time.sleep(0.3)


def text_of(output: dict) -> str:
    """What a cell printed, or what a widget shows: while it is there, its text is that of the bar."""
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


@pytest.fixture
def jupyterlab(tmp_path) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks, with nothing of the user's."""
    shutil.copytree(ROOT / "papers", tmp_path / "papers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"SWARMBOOK_STORE": str(tmp_path / "store"), "SWARMBOOK_FRESH": "1"}
    settings = "--no-browser --expose-app-in-browser --allow-root --ip=127.0.0.1 --IdentityProvider.token="
    settings += " --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    place = [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path / 'papers'}"]
    command = [sys.executable, "-m", "jupyter", "lab", *settings.split(), *place]
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()  # ends its kernels as well
            server.wait(60)


def test_a_reader_runs_all_cells_in_jupyterlab(browser, jupyterlab):
    """With another profile, from nothing: no cell fails, bars show progress, every figure is there."""
    with Watched(browser, (jupyterlab, jupyterlab.replace("http", "ws")), **DESKTOP) as watched:
        lab = Lab(watched.page, jupyterlab, "hdee")
        lab.edit('profile = "cpu"', 'profile = "smoke"')
        bars = lab.run_all(seconds=600)
        cells = lab.cells()
        assert 'profile = "smoke"' in "".join(cells[0]["source"])
        assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []
        assert bars, "no progress bar was seen"
        for cell in cells:
            if figures := [tag for tag in cell["metadata"].get("tags", []) if tag.startswith("figure ")]:
                assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), figures
        lab.show("in zip(axes, SETTINGS")  # figure 1
        watched.page.wait_for_function(DRAWN, timeout=60_000)
        assert (watched.outside, watched.errors) == ([], [])
