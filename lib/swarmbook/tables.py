"""How objects show themselves in a notebook: as a whole table, in a frame that scrolls if it is long or wide.

Serves: `Runs`, plans and searches, and worlds of payments, where they end a cell.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def html(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """A title and a table of which no row, column or part of a text is left out. Text is escaped."""
    from html import escape

    import pandas as pd

    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame(list(rows)).to_html(index=False, border=0, na_rep="")
    return f'<p>{escape(title)}</p><div style="max-height: 30em; overflow: auto">{table}</div>'
