"""What a wheel carries besides the library: notebooks, corpora and tables, as `swarmbook/share`.

In the repository these files lie where readers look for them, in `papers/` and `data/`. A build copies them into the
package; an editable installation reads them where they are. The rest of the build is in `pyproject.toml`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# the toy corpus, a corpus of prose, and what the examples of the documentation use beside them
CORPORA = ("stories_toy", "essay_cfi", "scripture_web", "fiction_austen", "code_go", "children_alice")
DATA = ("LICENCES.md", "card.json", "tokenizer.json", "links.csv", "wan_delays.csv")
BESIDE = ("published.csv", "sweep.yaml", "released.json")  # beside each notebook, where it has them


def shared() -> list[Path]:
    """The files that a wheel carries, relative to the repository; no recorded runs, which are in the clone alone."""
    files = [ROOT / "data" / name for name in (*DATA, *(f"{name}.parquet" for name in CORPORA))]
    for folder in sorted((ROOT / "papers").iterdir()):
        files += [folder / name for name in (f"{folder.name}.ipynb", *BESIDE) if (folder / name).exists()]
    return [path.relative_to(ROOT) for path in files]


class BuildWithShare(build_py):
    """Builds the package, and copies the shared files into it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, "swarmbook", "share")
        shutil.rmtree(share, ignore_errors=True)  # of an earlier build
        for path in shared():
            self.mkpath(str(share / path.parent))
            self.copy_file(str(ROOT / path), str(share / path))


setup(cmdclass={"build_py": BuildWithShare})
