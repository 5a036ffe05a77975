"""The five papers as notebooks: how they are executed, swept over settings, recorded, verified and reported."""

import sys

# jsonschema, which checks the form of notebooks, would otherwise build grammars of internationalised addresses when it
# is loaded, for 1.3 s in every process. Notebooks have no such addresses; without this package they stay unchecked.
sys.modules.setdefault("rfc3987_syntax", None)
