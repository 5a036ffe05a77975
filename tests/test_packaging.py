"""What a newcomer meets before the first line of code: dependencies, README, the CI script."""

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import swarmbook
from swarmbook.analysis import claims
from swarmbook.reproduction import papers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
ESTIMATE = r"[\d.]+ ± [\d.]+"
PAGES = [path.relative_to(ROOT) for path in sorted(ROOT.glob("*.md"))]
PAGES += [Path(folder, "README.md") for folder in ("data", "findings", "lib", "papers", "tests")]


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in requirements}


NEEDED = by_name(PROJECT["dependencies"])
TESTED = NEEDED | by_name(PROJECT["optional-dependencies"]["test"])
CLUSTER = by_name(PROJECT["optional-dependencies"]["cluster"])  # loaded when a sweep starts


def pinned() -> dict[str, str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][:2] == ["python=3.11", "pip"]
    *pins, ourselves = environment["dependencies"][2]["pip"]
    assert ourselves == "-e ."
    return dict(line.split("==") for line in pins)


def closure(names: dict[str, Requirement]) -> set[str]:
    """Everything that the named requirements bring along here, by the metadata of what is installed."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for name, need in names.items() for extra in {"", *need.extras}]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for need in map(Requirement, importlib.metadata.requires(name) or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), wanted) for wanted in {"", *need.extras}]
    return {name for name, _ in seen}


def test_environment_pins_what_the_project_needs():
    pins = pinned()
    assert set(TESTED) <= set(pins), f"environment.yml lacks {sorted(set(TESTED) - set(pins))}"
    outside = {name: pins[name] for name, need in TESTED.items() if not need.specifier.contains(pins[name])}
    assert not outside, f"environment.yml pins versions that pyproject.toml does not allow: {outside}"


@pytest.mark.skipif(sys.platform != "linux", reason="packages bring others along on other platforms")
def test_environment_pins_nothing_else():
    pins = pinned()
    assert not set(pins) - closure(TESTED)


def test_every_dependency_is_bounded_and_torch_ends_at_the_recorded_release():
    for name, need in NEEDED.items():
        assert {spec.operator for spec in need.specifier} & {"<", "<="}, f"{name} has no upper bound"
    assert need_of("torch").contains("2.13.0+cpu") and need_of("torch").contains("2.13.0+cu130")
    assert not need_of("torch").contains("2.13.1")


def need_of(name: str):
    return NEEDED[name].specifier


@pytest.mark.parametrize(("folder", "allowed"), [("lib", NEEDED | CLUSTER), ("tests", TESTED), ("data", TESTED)])
def test_whatever_is_imported_is_declared(folder, allowed):
    distributions = importlib.metadata.packages_distributions()
    ours = (
        {"swarmbook"}
        | {path.stem for path in (ROOT / folder).rglob("*.py")}
        | {path.stem for path in ROOT.glob("data/*")}
    )
    undeclared = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours:
                owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
                if not owners & set(allowed):
                    undeclared.setdefault(top, path.name)
    assert not undeclared


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == swarmbook.__version__ == str(citation["version"])
    assert PROJECT["license"] == citation["license"] == "MIT"


def test_the_citation_has_what_its_format_requires():
    """The keys that the schema of CFF 1.2.0 requires, and of a software and its authors no others than it knows."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["authors"]
        assert all(author.keys() & {"name", "family-names"} for author in entry["authors"])
    assert citation["message"] and all(entry["type"] == "article" for entry in citation["references"])
    known = {"cff-version", "message", "type", "title", "version", "license", "authors", "keywords", "references"}
    assert citation.keys() == known


def test_urls_are_those_of_the_papers():
    cited = {entry["url"] for entry in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]}
    linked = {url for url in re.findall(r"https://arxiv\.org/abs/[\d.]+", README) if url}
    assert set(PROJECT["urls"].values()) == cited == linked


# The package outside its clone


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder of site-packages with nothing in it but swarmbook, built as a wheel without network and installed."""
    place = tmp_path_factory.mktemp("wheel")
    source, site = place / "source", place / "site"
    for name, aside in {"lib": "*.egg-info", "data": "", "papers": "runs*"}.items():
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", aside))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, source]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = place.glob("*.whl")
    assert wheel.stat().st_size < 20e6, "a wheel of this size is slow to install: leave something in the clone"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return site


def outside(installed: Path, place: Path, *command: str, **more: str) -> subprocess.CompletedProcess:
    """Run Python in a folder that is no clone, with the installed package and no place set by the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARMBOOK_")}
    environment |= {"PYTHONPATH": str(installed), "SWARMBOOK_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=place, env=environment | more, capture_output=True, text=True)


def test_a_wheel_carries_what_its_readers_need(installed):
    share, committed = installed / "swarmbook" / "share", {path.name for path in (ROOT / "data").glob("*.parquet")}
    assert {path.name for path in (share / "data").glob("*.parquet")} == committed
    for name in ("data/tokenizer.json", "data/card.json", "data/LICENCES.md", "data/links.csv", "data/wan_delays.csv"):
        assert (share / name).read_bytes() == (ROOT / name).read_bytes()
    for paper in (path.parent for path in ROOT.glob("papers/*/sweep.yaml")):
        for name in (f"{paper.name}.ipynb", "published.csv", "sweep.yaml"):
            assert (share / "papers" / paper.name / name).read_bytes() == (paper / name).read_bytes()
    assert not list(share.rglob("runs")) and not list(share.rglob("*.py"))
    assert (installed / "swarmbook" / "py.typed").exists()


def test_an_installed_package_lists_its_papers_and_keeps_its_runs_here(installed, tmp_path):
    listed = outside(installed, tmp_path, "-m", "swarmbook", "list", "--json")
    papers = json.loads(listed.stdout)["papers"]
    assert listed.returncode == 0 and {paper["name"] for paper in papers} == {
        path.parent.name for path in ROOT.glob("papers/*/sweep.yaml")
    }
    assert all(paper["runs"] == 0 and paper["claims"] for paper in papers)
    own_method = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace('"steps": 100', '"steps": 2')
    code = (
        own_method
        + """
import swarmbook
from swarmbook import RunConfig, grid, run
base = {"data": "essay_cfi", "width": 8, "heads": 2, "sequence": 16, "steps": 2, "stages": 2, "microbatches": 1}
assert len(run([RunConfig(**base)], show=False).final()) == 1
print(swarmbook.__file__)
"""
    )
    trained = outside(installed, tmp_path, "-c", code)
    assert trained.stdout.endswith(f"{installed / 'swarmbook' / '__init__.py'}\n"), trained.stderr
    assert re.search(r"^median of three +\d", trained.stdout, re.MULTILINE)
    assert list((tmp_path / "runs" / "store").glob("*.parquet"))


def test_an_installed_notebook_finds_the_store_where_the_command_was_given(installed, tmp_path):
    """Its kernel runs in the folder of the notebook, which may be read-only."""
    code = """
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from swarmbook import locations
from swarmbook.reproduction import execution, papers
path = locations.papers_folder() / "toy" / "toy.ipynb"
path.parent.mkdir()
shown = "from swarmbook.locations import store_folder; print(store_folder())"
cells = [new_code_cell('profile = "cpu"', metadata={"tags": ["parameters"]}), new_code_cell(shown)]
nbformat.write(new_notebook(cells=cells), path)
done = execution.execute(papers.read_paper(path), page=False)
print(done.notebook, nbformat.read(done.notebook, 4).cells[-1].outputs[0].text)
"""
    done = outside(installed, tmp_path, "-c", code)
    shutil.rmtree(installed / "swarmbook" / "share" / "papers" / "toy")
    assert done.stdout.split() == [str(tmp_path / "runs/toy/toy.ipynb"), str(tmp_path / "runs/store")], done.stderr


@pytest.mark.parametrize("command", [["verify"], ["run", "--record", "syncpcn"]])
def test_an_installed_package_says_what_needs_a_clone(installed, tmp_path, command):
    refused = outside(installed, tmp_path, "-m", "swarmbook", *command)
    assert refused.returncode == 2 and "pip install -e ." in refused.stderr
    nowhere = outside(installed, tmp_path, "-m", "swarmbook", "list", SWARMBOOK_PAPERS=str(tmp_path / "none"))
    assert nowhere.returncode == 2 and f"no papers in {tmp_path / 'none'}" in nowhere.stderr


def test_public_names_load_when_they_are_asked_for():
    assert {"RunConfig", "grid", "run"} <= set(swarmbook.__all__) <= set(dir(swarmbook))
    assert swarmbook.grid is importlib.import_module("swarmbook.config").grid
    assert all(getattr(swarmbook, name) for name in swarmbook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = swarmbook.runn


def test_importing_the_package_takes_no_time():
    code = "import time; before = time.process_time(); import swarmbook; print(time.process_time() - before)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout) for _ in range(5)]
    assert min(seconds) <= 0.05


# Rooms that compute with torch. Loading it takes longer than all else that a notebook loads whose runs are recorded.
TENSORS = ("swarmbook.training", "swarmbook.distributed", "swarmbook.export")
WAITS = {"torch", "transformers", "datasets", "tokenizers", "ortools", "papermill", "nbconvert", "dask", "distributed"}


def loading(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run code in a new interpreter with `loaded()`, the top-level packages that it has loaded since it began."""
    start = "import importlib, sys\nbefore = set(sys.modules)\n"
    start += "def loaded(): return {name.split('.')[0] for name in set(sys.modules) - before if sys.modules[name]}\n"
    return subprocess.run([sys.executable, "-c", start + code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("module", ["swarmbook", "swarmbook.cli"])
def test_the_package_and_its_command_line_load_the_standard_library_alone(module):
    code = "importlib.import_module(sys.argv[1]); print(*sorted(loaded() - sys.stdlib_module_names))"
    assert loading(code, module).stdout == "swarmbook\n"


def test_only_modules_that_compute_with_tensors_load_torch():
    """And none loads at once what only some calls need."""
    files = sorted((ROOT / "lib").glob("swarmbook/**/*.py"))
    names = [path.relative_to(ROOT / "lib").with_suffix("").parts for path in files]
    modules = [".".join(name).removesuffix(".__init__") for name in names if name[-1] != "__main__"]
    modules = [name for name in modules if not name.startswith(TENSORS)]
    assert "swarmbook.runs" in modules and "swarmbook.payments.payment_network" in modules
    code = f"""
for name in sys.argv[1:]:
    importlib.import_module(name)
    if heavy := loaded() & {WAITS}:
        sys.exit(f"{{name}} loads {{', '.join(heavy)}}: import that where it is used, or add {{name}} to TENSORS")
"""
    done = loading(code, *modules)
    assert done.returncode == 0, done.stderr


def test_recorded_runs_are_read_without_torch():
    code = """
from pathlib import Path
from swarmbook.config import run_config
from swarmbook.runs import run
from swarmbook.records.store import Store
folder = Path(sys.argv[1])
store = Store(folder / "none", [folder])
records = [store.get(path.stem) for path in sorted(folder.glob("*.parquet"))[:3]]
runs = run([run_config(**record.config) for record in records], store=store)
assert len(runs.final()) == 3
print(*sorted(loaded() & {"torch", "datasets", "transformers"}))
"""
    done = loading(code, ROOT / "papers" / "checkfree" / "runs")
    assert (done.stdout, done.stderr) == ("\n", "")


def test_nbformat_is_loaded_without_a_grammar_that_it_asks_nothing():
    """It takes a second to compile."""
    pytest.importorskip("rfc3987_syntax", reason="JupyterLab brings it")
    done = loading("import swarmbook.reproduction, nbformat; print('lark' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")
    early = "import rfc3987_syntax, swarmbook.reproduction; print(rfc3987_syntax.is_valid_syntax('iri', 'http://a.b'))"
    assert loading(early).stdout == "True\n"


def command(name: str) -> str:
    found = re.findall(rf"^<!-- command: {name} -->\n```(?:sh|bash)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", ["install", "test"])
def test_the_readme_has_one_line_for_each_command(name):
    assert re.fullmatch(r"[^\n]+\n", command(name))
    assert subprocess.run(["bash", "-n", "-c", command(name)]).returncode == 0


def test_the_files_that_are_to_begin_first_are_there():
    named = set(re.findall(r'"([\w.]+\.(?:py|ipynb))"', (ROOT / "conftest.py").read_text()))
    files = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("papers/*/*.ipynb")]
    assert named and named <= {path.name for path in files}


def test_ci_can_be_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize("name", ["install", "test"])
def test_ci_takes_its_commands_from_the_readme(name):
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^command_of\(\) \{.*?^\}\n", script, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(["bash", "-c", f"{function}command_of {name}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, command(name))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_dead_links(page):
    """Links within the clone; those that lead elsewhere are not followed."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL))
    dead = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            dead.append(link)
    assert not dead


BLOCKS = {page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL) for page in PAGES}
SHOWN = {  # by page what its blocks print, among other lines
    "README.md": [r"CheckFree +\d", r"median of three +\d"],
    "lib/README.md": [
        r"DiLoCo +\d",
        r"signs +\d",
        r"0 +\(\(beta, 0.5\),\) +\d",
        r"1 +Lion +\d",
        r"code_go +\d",
        r"[\d.]+ [\d.]+ [\d.]+$",
        r"[\d.]+ [\d.]+ (links|nodes) twice as fast \(\(",
        r"\['Refunded'",
    ],  # fmt: skip
    "data/README.md": [],
}


def test_every_page_with_blocks_of_python_is_run():
    assert {str(page) for page, blocks in BLOCKS.items() if blocks} == set(SHOWN)


@pytest.mark.parametrize("page", SHOWN)
def test_the_blocks_of_a_page_run_as_they_stand(page, tmp_path):
    code = "\n".join(BLOCKS[Path(page)])
    shorter = {'"steps": 100': '"steps": 10', "steps=100": "steps=10", "200_000": "2_000"}
    shorter |= {'"sequence": 64': '"sequence": 16', '"evaluate_every": 50': '"evaluate_every": 50, "held_out": 8'}
    for long, short in shorter.items():
        code = code.replace(long, short)
    environment = os.environ | {"SWARMBOOK_STORE": str(tmp_path / "store"), "HF_HOME": str(tmp_path / "hub")}
    place = ROOT if page == "data/README.md" else tmp_path  # that page names files of the clone
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in SHOWN[page]:
        assert re.search(f"^{line}", done.stdout, re.MULTILINE), line


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_nothing_is_left_to_do_in_a_page(page):
    assert "TODO" not in (ROOT / page).read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_readme_counts_the_claims_of_the_committed_notebooks_and_says_what_they_say():
    said, counted, found = {}, {}, []
    words = r"(\d+) of (\d+) \((\d+) in direction, (\d+) do not, (\d+) undecided, (\d+) no power\)"
    for name, *numbers, text in re.findall(rf"\(papers/(\w+)/\w+\.ipynb\) \| {words} \| (.*) \|\n", README):
        said[name] = [int(number) for number in numbers]
        found.append(text)
    own = [paper for paper in papers.records(ROOT / "papers").values() if not paper.profile]
    for paper in own:
        verdicts = [claim.verdict for claim in paper.claims]
        holds, *others = (verdicts.count(verdict) for verdict in claims.VERDICTS)
        counted[paper.name] = [holds, len(verdicts), *others]
    assert said == counted
    assert sorted(found) == sorted(paper.found for paper in own)
    holds, every, direction, fails, undecided, powerless = map(sum, zip(*counted.values(), strict=True))
    told = f"{every} claims, the papers' and our own: {holds} hold, {direction} hold in direction but not in size, "
    told += f"{fails} do not hold, {undecided} are undecided, and {powerless} cannot be judged"
    assert told in " ".join(README.split())
    first = README.partition("## Start")[0]
    measured = {
        number for paper in own for claim in paper.claims for number in re.findall(ESTIMATE, claim.ours + claim.power)
    }
    assert set(re.findall(ESTIMATE, first)) <= measured


@pytest.mark.parametrize("script", sorted(ROOT.glob("findings/*.sh")), ids=lambda path: path.name)
def test_a_finding_keeps_the_form(script):
    """It is listed, pins what it installs, cleans up, and knows nothing of swarmbook. None is executed here."""
    text = script.read_text()
    assert os.access(script, os.X_OK) and subprocess.run(["bash", "-n", script]).returncode == 0
    assert f"({script.name})" in (ROOT / "findings" / "README.md").read_text()
    installed = re.findall(r"pip install -q ([^#\n]+)", text)
    assert installed and all("==" in package for line in installed for package in line.split())
    assert "mktemp -d" in text and "trap 'rm -rf \"$place\"' EXIT" in text and "swarmbook" not in text


def test_the_readme_names_every_paper_that_there_is():
    for notebook in ROOT.glob("papers/*/*.ipynb"):
        if notebook.stem == notebook.parent.name:  # others are records at another profile
            assert f"({notebook.relative_to(ROOT)})" in README
