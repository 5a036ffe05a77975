"""Executing several notebooks at a time, each in a process of its own.

Serves: `swarmbook run`.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, get_context
from typing import Any

from swarmbook.errors import NotebookError
from swarmbook.reproduction import execution
from swarmbook.reproduction.execution import Execution, OnProgress
from swarmbook.reproduction.papers import Paper

Work = tuple[Paper, Mapping[str, Any], OnProgress]  # a paper, the parameters of its notebook, and who is told


def side_by_side(work: Sequence[Work], jobs: int, **way: Any) -> Iterator[tuple[Paper, Execution | NotebookError]]:
    """Execute notebooks, `jobs` at a time, and yield each paper with what came of it, as they end.

    way: the other arguments of `execution.execute`. A notebook that fails is no reason to end the others. Whatever
    else ends one, such as a full disk, ends all, and so does whatever ends this process but SIGKILL. What was executed
    of each until then is kept.
    """
    context, waiting, running = get_context("spawn"), list(work), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                paper, parameters, progress = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_execute, args=(there, paper, parameters, progress, way))
                running[here] = paper, process
                process.start()
                there.close()  # so that its end ends the pipe
            for here in connection.wait(list(running)):
                paper, process = running[here]
                try:
                    done = here.recv()
                except EOFError:
                    done = NotebookError(f"{paper.name}: its process died, perhaps for want of memory")
                process.join()
                del running[here]
                if isinstance(done, BaseException) and not isinstance(done, NotebookError):
                    raise done
                yield paper, done
    finally:
        begun = [process for _, process in running.values() if process.pid is not None]
        for process in begun:
            process.terminate()
        for process in begun:
            process.join()


def _execute(
    answer: connection.Connection,
    paper: Paper,
    parameters: Mapping[str, Any],
    progress: OnProgress,
    way: Mapping[str, Any],
) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches all processes; the first one ends the others
    try:
        answer.send(execution.execute(paper, parameters, progress=progress, **way))
    except BaseException as error:
        answer.send(error)
