"""What a wheel carries besides the library: notebooks, corpora and tables, as `swarmbook/share`.

In the repository these files lie where readers look for them, in `papers/` and `data/`. A build copies them into the
package; an editable installation reads them where they are. The rest of the build is in `pyproject.toml`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DATA = ("LICENCES.md", "*.json", "*.csv", "*.parquet")
BESIDE = ("published.csv", "sweep.yaml", "released.json")  # beside each notebook, where it has them


def shared() -> list[Path]:
    """The files that a wheel carries, relative to the repository. Recorded runs stay in the clone: they are many."""
    files = [path for pattern in DATA for path in sorted((ROOT / "data").glob(pattern))]
    for folder in sorted((ROOT / "papers").iterdir()):
        files += [folder / name for name in (f"{folder.name}.ipynb", *BESIDE) if (folder / name).exists()]
        files += sorted((folder / "swarms").glob("*"))
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
