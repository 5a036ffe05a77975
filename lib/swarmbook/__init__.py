"""Computing with machines that nobody can rely on: five papers over one thin library."""

__version__ = "0.1.0"
