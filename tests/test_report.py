"""The report: every link leads somewhere, nothing is fetched, and every claim is on the front page."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import FIGURE

from swarmbook import cli, locations
from swarmbook.analysis.claims import VERDICTS
from swarmbook.config import run_config
from swarmbook.records.store import Store
from swarmbook.reproduction import execution, papers, publishing, report_theme
from swarmbook.runs import run

PAPERS = papers.records(Path(__file__).parents[1] / "papers")
TINY = dict(data="stories_toy", tokenizer="bytes", width=8, heads=2, hidden=8, sequence=8, stages=2, microbatches=1)
TINY |= dict(steps=4, evaluate_every=2, log_every=2, held_out=4)
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page is made of: anchors, links, what it loads, its text and its scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.scripts, self.words = set(), [], [], [], []
        self.policies, self.handlers, self.labels, self.fields = [], [], 0, 0
        self.within = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in LOADING and attributes.get(LOADING[tag]):
            self.loaded.append(attributes[LOADING[tag]])
        self.within = tag
        self.labels += tag == "label"
        self.fields += tag == "input"
        if tag == "script":
            self.scripts.append("")
        self.handlers += [name for name in attributes if name.startswith("on")]
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(attributes["content"])

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


def dead_links(folder: Path) -> list[str]:
    """Links within a site that lead nowhere."""
    pages = {path.name: Page(path) for path in folder.glob("*.html")}
    dead = []
    for name, page in pages.items():
        for link in page.links:
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            target, _, anchor = link.partition("#")
            if target and not target.endswith(".html") and (folder / unquote(target)).is_file():
                continue
            other = pages.get(unquote(target) or name)
            if other is None or (anchor and not {anchor, unquote(anchor)} & other.anchors):  # as browsers look for it
                dead.append(f"{name}: {link}")
    return dead


def assert_sound(folder: Path) -> None:
    assert dead_links(folder) == []
    for path in folder.glob("*.html"):
        page = Page(path)
        assert len(page.scripts) <= (path.name == "index.html"), f"{path.name} needs JavaScript"
        assert page.labels == page.fields or path.name != "index.html", "a field without a label"
        assert [what for what in page.loaded if not what.startswith("data:")] == [], f"{path.name} fetches"
        text = path.read_text(encoding="utf-8")
        assert "@import" not in text and "url(http" not in text
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        for script in page.scripts:  # it alone may run
            policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        assert page.policies == [policy], f"{path.name} does not forbid to fetch"
        assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


@pytest.fixture
def committed(toy) -> papers.Paper:
    # a colour with the name of a claim is no claim's place
    start = "from swarmbook.analysis.claims import Claims\nfrom swarmbook.analysis.figures import style\nstyle()\n"
    start += "claims, colour = Claims(), 'T1'"
    first = "claims.add(\n    'T1', 'toys work', 3, steps, 'holds')"
    second = "_ = claims.add('T2', 'a | b <c> *d*', 3, steps, 'does not hold')"
    cells = [(start, ""), (FIGURE, "figure 4a"), (first, ""), ("print(steps)", "table 2"), (second, "")]
    path = toy("toy", *cells, ("print('no claim')", "table 3"), ("claims", "claims"))
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    return papers.read_paper(path)


def test_a_site_has_a_front_page_with_all_claims_and_a_page_for_each_paper(committed, tmp_path, capsys):
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.strip() == f"report    {tmp_path / 'site' / 'index.html'}"
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", "toy.html", "toy.ipynb", "figures"}
    assert_sound(tmp_path / "site")
    front = Page(tmp_path / "site" / "index.html")
    words = " ".join(" ".join(front.words).split())
    for text in ("T1", "toys work", "✓ holds", "T2", "a | b <c> *d*", "✗ does not hold", "figure 4a", "table 2"):
        assert text in words, text
    rows = [link for link in front.links if link.startswith("toy.html#")]
    assert rows[-4:] == ["toy.html#T1", "toy.html#figure-4a", "toy.html#T2", "toy.html#table-2"]
    assert {"toy.html", "toy.ipynb"} < set(front.links) and {"claims", "toy-T1", "toy-T2"} <= front.anchors
    assert len(front.loaded) == 1, "the paper has no picture"
    page = Page(tmp_path / "site" / "toy.html")
    assert {"T1", "T2", "figure-4a", "table-2", "table-3"} <= page.anchors
    assert {"index.html", "toy.ipynb"} < set(page.links) and len(page.loaded) == 1
    assert "swarmbook run toy" in " ".join(page.words)
    assert (tmp_path / "site" / "toy.ipynb").read_bytes() == committed.notebook.read_bytes()


ODD = "a\n\n![picture](http://localhost:9/p.png) [link](javascript:void(0)) <img src=x onerror=y> <b title='"
PLAIN = " ".join(ODD.split())


def test_text_of_claims_labels_and_titles_stays_text(toy, tmp_path):
    """Whatever stands in them makes no element of a page, and no link, picture or script."""
    claims = "from swarmbook.analysis.claims import Claims\nclaims = Claims()\n"
    claims += f"claims.add('<i id=z>', {ODD!r}, {ODD!r}, {ODD!r}, 'holds')\nclaims"
    path = toy("toy", (FIGURE, "figure <i onclick=z>"), (claims, f"table {ODD}"))
    path.write_text(path.read_text().replace("The toy paper", "The <u onclick=z>toy</u> [paper](javascript:void(0))"))
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 0
    front, page = (Page(tmp_path / "site" / name) for name in ("index.html", "toy.html"))
    words = " ".join(" ".join(front.words).split())
    assert words.count(PLAIN) == 5 and "<i id=z>" in words and "z" not in front.anchors
    assert "The <u onclick=z>toy</u> [paper](javascript:void(0))" in words
    assert (front.handlers, len(front.scripts)) == ([], 1)
    assert [source.partition(",")[0] for source in front.loaded] == ["data:image/png;base64"]
    assert {link.partition("#")[0] for link in front.links} <= {"", "toy.html", "toy.ipynb"}
    assert "figure <i onclick=z>" in " ".join(page.words)
    assert (len(page.loaded), page.scripts) == (1, [])
    assert page.handlers == ["onclick"]  # of the notebook's own title, which the policy keeps from doing anything


def test_handlers_of_events_are_left_out_and_text_stays():
    film = """<input max="3" oninput="f(t => t > 2 ? 'a' : &quot;b&quot;)" value='1' hidden ONCLICK=x>"""
    film += """<p title="x onload='y'">a onx="b"</p>"""
    plain = """<input max="3" value='1' hidden><p title="x onload='y'">a onx="b"</p>"""
    assert publishing.without_handlers(film) == plain


def test_dead_links_and_fetches_would_be_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html">x</a><a href="#y">y</a><a href="a.html#z">z</a><p id="z">')
    assert dead_links(tmp_path) == ["a.html: b.html", "a.html: #y"]
    (tmp_path / "a.html").write_text('<script src="https://x/y.js"></script>')
    with pytest.raises(AssertionError, match="needs JavaScript"):
        assert_sound(tmp_path)


@pytest.fixture
def recorded(toy, tmp_path, one_thread) -> list[str]:
    """The keys of a toy paper's runs: one that two figures read, and one that goes on from it, read by the second."""
    first = run_config(**TINY)
    configs = [first, run_config(**{**TINY, "steps": 6, "start": first})]
    store = Store(tmp_path / "store")
    run(configs, store=store, device="cpu", show=False)
    load = f"from swarmbook.config import run_config\nfrom swarmbook.runs import run\nfirst = run_config(**{TINY})\n"
    load += f"runs = run([first, run_config(**{ {**TINY, 'steps': 6} } | {{'start': first}})], device='cpu')"
    cells = ("runs.where(steps=4).final()", "table 1"), ("runs.where(steps=6).final()", "table 2"), ("1", "table 3")
    path = toy("toy", (load, ""), *cells)
    keys = [config.key for config in configs]
    store.publish(keys, path.parent / "runs")
    paper = papers.read_paper(path)
    publishing.commit(paper, execution.execute(paper).notebook)
    return keys


@pytest.fixture
def committed_at_smoke(recorded, tmp_path) -> None:
    paper = papers.discover()["toy"]
    smoke = papers.at(paper, "smoke")
    publishing.commit(smoke, execution.execute(paper, {"profile": "smoke"}).notebook)
    Store(tmp_path / "store").publish(recorded, smoke.beside("runs"))


def test_each_figure_tells_which_runs_it_stands_on_and_how_to_repeat_it(recorded, tmp_path):
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 0
    assert_sound(tmp_path / "site")
    page = (tmp_path / "site" / "toy.html").read_text()
    told = {name: part.split("</details>")[0] for name in ("table 1", "table 2", "table 3")
            for part in page.split(f"<summary>{name}: ")[1:]}  # fmt: skip
    first, second = recorded
    assert told["table 1"].startswith("from 1 run<") and f"#run-{first}" in told["table 1"]
    assert second not in told["table 1"]
    assert told["table 2"].startswith("from 1 run<") and f"#run-{second}" in told["table 2"]
    assert f"#run-{first}" in told["table 2"].split("These were made from 1 run")[1]
    for name in ("table 1", "table 2"):
        assert "swarmbook run toy --fresh" in told[name] and "torch 2." in told[name]
    assert told["table 3"].startswith("computed by") and "nothing recorded" in told["table 3"]


def test_a_record_at_another_profile_has_a_page_and_a_place_below_its_paper(recorded, committed_at_smoke, tmp_path):
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 0
    assert_sound(tmp_path / "site")
    assert {path.name for path in (tmp_path / "site").glob("*.html")} == {"index.html", "toy.html", "toy.smoke.html"}
    front = Page(tmp_path / "site" / "index.html")
    words = " ".join(" ".join(front.words).split())
    assert words.index("The toy paper") < words.index("The toy paper, at the profile smoke")
    assert [link for link in front.links if link.endswith(".html")] == 2 * ["toy.html", "toy.smoke.html"]
    page = (tmp_path / "site" / "toy.smoke.html").read_text()
    told = page.split("<summary>table 1: ")[1].split("</details>")[0]
    assert told.startswith("from 1 run<") and f"#run-{recorded[0]}" in told
    assert "<code>swarmbook run toy --profile smoke --fresh</code>" in told
    assert "swarmbook verify toy.smoke" in page
    assert "--profile" not in (tmp_path / "site" / "toy.html").read_text()


def test_a_report_of_damaged_runs_is_refused(recorded, tmp_path, capsys):
    damaged = locations.papers_folder() / "toy" / "runs" / f"{recorded[0]}.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 1
    assert f"{damaged} is damaged and not used" in capsys.readouterr().err


def test_the_papers_make_a_sound_site(site):
    assert_sound(site)
    words = " ".join(" ".join(Page(site / "index.html").words).split())
    assert all(claim.id in words for paper in PAPERS.values() for claim in paper.claims)
    for name, paper in PAPERS.items():
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        assert all(f'id="run-{path.stem}"' in page for path in paper.beside("runs").glob("*.parquet"))
        summaries = [part.split(": ")[0].split(", ") for part in page.split("<summary>")[1:]]
        told = {name for summary in summaries for name in summary}
        assert {*paper.figures, *paper.tables} <= told
        places = Page(site / f"{name}.html").anchors
        labels = map(papers.label_of, json.loads(paper.notebook.read_text())["cells"])
        assert {publishing.slug(label) for label in labels if label} <= places
        assert {claim.anchor for claim in paper.claims} <= places


def test_a_report_says_at_once_what_it_does(committed, tmp_path, capsys, monkeypatch):
    """Before anything is loaded that takes long."""
    told = []
    monkeypatch.setattr(publishing, "check", lambda _: told.append(capsys.readouterr().err) or 1 / 0)
    for command in ("report", "verify"):
        assert cli.main([command, *(["--output", str(tmp_path / "site")] if command == "report" else [])]) == 1
        capsys.readouterr()
    assert told == ["report: toy\n", "verify: toy\n"]


@pytest.fixture
def drawn(committed, tmp_path) -> Path:
    """A report after `swarmbook run --figures` has drawn the same pictures."""
    assert cli.main(["run", "--figures"]) == 0
    assert cli.main(["report", "--output", str(tmp_path / "site")]) == 0
    return tmp_path / "site"


def test_a_figure_comes_with_its_numbers_and_as_svg(drawn, tmp_path):
    page = Page(drawn / "toy.html")
    files = {link for link in page.links if link.startswith("figures/")}
    assert files == {f"figures/toy/figure-4a.{suffix}" for suffix in ("png", "csv", "svg")}
    assert dead_links(drawn) == []
    lines = (drawn / "figures/toy/figure-4a.csv").read_text().splitlines()
    assert lines == ["panel,kind,series,x,y,x_to,y_to,value", "panel 1,line,,0,0,,,", "panel 1,line,,3,0.1,,,"]
    svg = (drawn / "figures/toy/figure-4a.svg").read_text()
    assert "<svg" in svg and (tmp_path / "runs/toy/figures/figure-4a.svg").read_text() == svg


def test_an_svg_of_another_picture_is_left_out(drawn, tmp_path):
    assert cli.main(["run", "--figures", "-p", "steps", "5"]) == 0
    assert cli.main(["report", "--output", str(tmp_path / "other")]) == 0
    assert {path.suffix for path in (tmp_path / "other/figures/toy").iterdir()} == {".png", ".csv"}


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2, of a colour such as "#1a7f37"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_verdicts_can_be_read_on_every_ground():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5
    assert set(report_theme.COLOURS) == set(VERDICTS)
    for verdict, colours in report_theme.COLOURS.items():
        for colour, grounds in zip(colours, report_theme.GROUNDS, strict=True):
            for ground in grounds:
                assert contrast(colour, ground) >= 4.5, (verdict, colour, ground)
