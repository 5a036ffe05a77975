"""Search for violations: `python -m swarmbook.payments.model_checking --seconds 60 --seed 0`.

Prints every violation with the fewest deviations that lead to it, and what was explored: by guided random search, or
with `--depth K` every schedule with at most K deviations, world by world. The exit status is 1 if anything was found.

The random search goes in rounds. Each takes a few worlds, by its seed, and plays some thousand schedules in them. With
`--log FILE` a round that has ended is written there as a line, and a later call with the same file goes on after it.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from swarmbook.payments.model_checking.search import Report, exhaustive, guided
from swarmbook.payments.model_checking.settings import PORTFOLIO, Setting, everything

ROUND = {"worlds": 6, "schedules": 1800}


def rounds(worlds: list[Setting], seed: int, seconds: float, log: Path | None = None) -> Iterator[dict[str, object]]:
    """Search in rounds for so many seconds of CPU time; yields what each has seen, those of the log first."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    yield from done
    begun = time.process_time()
    for number in count(max((line["seed"] + 1 for line in done), default=seed)):
        if time.process_time() - begun >= seconds:
            return
        rng = random.Random(number)
        chosen = sorted(rng.sample(range(len(worlds)), min(ROUND["worlds"], len(worlds))))
        report = guided([worlds[k] for k in chosen], rng, schedules=ROUND["schedules"], first=False)
        line = {
            **{"seed": number, "worlds": chosen, "schedules": report.schedules, "events": report.events},
            **{
                "states": len(report.states),
                "seconds": round(report.seconds, 1),
                "found": list(map(str, report.found)),
            },
        }
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        yield line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m swarmbook.payments.model_checking", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU time, for all worlds together")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--protocol", choices=tuple(PORTFOLIO), help="search the worlds of one protocol alone")
    parser.add_argument("--log", type=Path, help="a file to which each round is written, and from which it goes on")
    parser.add_argument("--depth", type=int, help="play every schedule with at most so many deviations instead")
    parser.add_argument("--fine", action="store_true", help="with --depth: of the large alphabet")
    parser.add_argument("--forgeries", type=int, default=0, help="with --depth: candidates of each class of message")
    given = parser.parse_args()
    worlds = [setting for setting in everything() if given.protocol in (None, setting.protocol)]
    if given.depth is None:
        found, seen, total = [], set(), dict.fromkeys(("schedules", "events", "states", "seconds"), 0)
        for line in rounds(worlds, given.seed, given.seconds, given.log):
            found += line["found"]
            seen.update(line["worlds"])
            total = {name: total[name] + line[name] for name in total}
        print(*found, sep="\n")
        print(
            f"{len(seen)} of {len(worlds)} worlds, {total['schedules']:,} schedules, {total['events']:,} events, "
            f"{total['states']:,} states (different ones of each round), {len(found)} violations, "
            f"{total['seconds']:.0f} s of CPU time"
        )
        return bool(found)
    report = Report()
    for setting in worlds:
        before = report.schedules
        left = given.seconds - report.seconds
        exhaustive(setting, given.depth, report, forgeries=given.forgeries, fine=given.fine, seconds=left)
        print(f"{report.schedules - before:9,} schedules: {setting}", flush=True)
    for found in report.found:
        print(found)
    print(report)
    return bool(report.found)


if __name__ == "__main__":
    sys.exit(main())
