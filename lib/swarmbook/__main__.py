"""`swarmbook` and `python -m swarmbook` are the command line. Ctrl-C is heard while it is still being imported."""

import sys


def main() -> int:
    """Run the command line of the process and return the exit status."""
    try:
        from swarmbook.cli import main

        return main()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
