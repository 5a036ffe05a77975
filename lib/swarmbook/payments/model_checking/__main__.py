"""Search for violations: `python -m swarmbook.payments.model_checking --seconds 60 --seed 0`.

Prints every violation with the fewest deviations that lead to it, and what was explored: by guided random search, or
with `--depth K` every schedule with at most K deviations, world by world. The exit status is 1 if anything was found.
"""

import argparse
import random
import sys

from swarmbook.payments.model_checking.search import Report, exhaustive, guided
from swarmbook.payments.model_checking.settings import everything


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m swarmbook.payments.model_checking", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU time, for all worlds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", choices=("SyncPCN", "PSyncPCN"), help="search the worlds of one protocol alone")
    parser.add_argument("--depth", type=int, help="play every schedule with at most so many deviations instead")
    parser.add_argument("--fine", action="store_true", help="with --depth: of the large alphabet")
    parser.add_argument("--forgeries", type=int, default=0, help="with --depth: candidates of each class of message")
    parser.add_argument("--watched", action="store_true", help="check the invariants after every event")
    given = parser.parse_args()
    worlds = [setting for setting in everything() if given.protocol in (None, setting.protocol)]
    report = Report()
    if given.depth is None:
        guided(worlds, random.Random(given.seed), given.seconds, watched=given.watched, first=False, report=report)
    else:
        for setting in worlds:
            before = report.schedules
            left = given.seconds - report.seconds
            more = {"forgeries": given.forgeries, "fine": given.fine, "watched": given.watched, "seconds": left}
            exhaustive(setting, given.depth, report, **more)
            print(f"{report.schedules - before:9,} schedules: {setting}", flush=True)
    for found in report.found:
        print(found)
    print(report)
    return bool(report.found)


if __name__ == "__main__":
    sys.exit(main())
