"""`python -m swarmbook` is the command line."""

import sys

from swarmbook.cli import main

sys.exit(main())
