import sys

from swarmbook.cli import main

sys.exit(main())
