"""Computing with machines that nobody can rely on: five papers over one thin library."""

import os

__version__ = "0.1.0"

# Read when torch loads OpenMP: idle threads give up their core after a tenth of a millisecond or so. By default they
# spin much longer, and beside another busy process each of the many small parallel regions then takes a time slice.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
