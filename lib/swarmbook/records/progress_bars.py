"""Bars that show how far training and computing are.

- In a notebook a bar is a widget. It goes away when the work is done, and nothing of it is stored but an empty output.
- Where a command follows the execution of a notebook, it names a folder in SWARMBOOK_PROGRESS. The newest state of the
  bar then lies there in the file `bar`, and the keys of the runs that are ready in the file `keys`. The notebook shows
  nothing of it.
- Elsewhere a bar is a line on standard error.

Serves: training and ensembles, and `swarmbook run`.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A bar of tqdm over `iterable`, or to be moved by hand; options: tqdm's."""
    if folder := os.environ.get("SWARMBOOK_PROGRESS"):
        short = "{desc} {percentage:.0f} %{postfix}, {rate_fmt}, {remaining} left"
        return tqdm(iterable, file=_Newest(Path(folder, "bar")), bar_format=short, **options)
    from tqdm.auto import tqdm as suited
    from tqdm.notebook import tqdm as widget

    return _widget(iterable, **options) if issubclass(suited, widget) else tqdm(iterable, **options)


def ready(keys: Iterable[str]) -> None:
    """Tell whoever follows which runs and tables are ready."""
    if folder := os.environ.get("SWARMBOOK_PROGRESS"):
        with suppress(OSError), open(Path(folder, "keys"), "a", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in keys)


class _Newest:
    """A file that holds the last line that was written to it."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            with suppress(OSError):  # the folder is gone with the command that followed
                self.path.write_text(line, encoding="utf-8")

    def flush(self) -> None:
        pass


def _widget(iterable: Iterable | None, **options: Any) -> tqdm:
    from IPython.display import display
    from tqdm.notebook import tqdm as widget

    class Passing(widget):
        """A bar that leaves an empty output."""

        def close(self) -> None:
            super().close()
            if shown is not None:
                shown.update({"text/plain": ""}, raw=True)

    shown = None
    made = Passing(iterable, display=False, leave=False, **options)
    if not made.disable:
        shown = display(made.container, display_id=True)
    return made
