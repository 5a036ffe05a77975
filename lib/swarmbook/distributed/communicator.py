"""Messages between the processes of one run, and who is to blame when one does not come.

- messages between two ranks are read in the order in which they were sent, so they bear no tags. Those that go up in
  rank and those that go down have a communicator each, as NCCL wants it
- every rank lets the others see that it lives, once a second. Who waits in vain blames the rank that fell silent, not
  the neighbour that waits for it too; the first to notice leaves a note, which all others repeat
- a process that was killed is noticed when its connections close, one that hangs or is cut off after `timeout`
- where a lost process may be replaced, the others stay: all close their connections, which wakes who still waits, and
  `meet` again, the new one among them
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from swarmbook.distributed.emulated_links import EmulatedLinks
from swarmbook.errors import TrainingError

BEAT = 1.0  # seconds between two signs of life
JOIN = 300.0  # seconds for all ranks to come: they start together, but do not load equally fast
POLL = 0.05  # seconds between two looks at who has come


class LostRank(TrainingError):
    """A rank was lost, or a connection to one, and a new process may take its place: `Communicator.rendezvous` waits for it."""


def world() -> tuple[int, int]:
    """The rank of this process and their number, as torchrun says in the environment; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class PendingMessage:
    """A message on its way here: `read` waits for it."""

    comm: "Communicator"
    source: int
    work: "dist.Work"
    tensor: Tensor
    like: Tensor

    def read(self) -> Tensor:
        with self.comm.blaming(self.source):
            self.work.wait()
        return self.comm.unsealed(self.tensor, self.like, self.source)


class Communicator:
    """All processes that torchrun started together, this one among them.

    timeout: seconds after which a rank that gives no sign of life counts as lost. replaceable: whether a new process
    may take the place of a lost one; the others then raise LostRank where they else would name it. Raises TrainingError
    that names the ranks which have not come after `JOIN` seconds. links: how slow messages are to be; None: as slow as
    they are. Also a context: left without an error, it waits until all leave it.
    """

    def __init__(
        self, device: torch.device, timeout: float, replaceable: bool = False, links: EmulatedLinks | None = None
    ):
        self.rank, self.size = world()
        self.device, self.timeout, self.replaceable, self.links = device, timeout, replaceable, links
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._sent: list[tuple[int, dist.Work, Tensor]] = []
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._ways: list[dist.ProcessGroup] = []
        self._threads: list[threading.Thread] = []
        self._done = threading.Event()
        self._all = self._connect()  # the store of all meetings
        self._all.set_timeout(timedelta(seconds=timeout))
        self.rendezvous(None)

    def rendezvous(self, place: int | None) -> None:
        """Connect all ranks, after a loss anew. `places`: what each gives as its place in the run, None of a new one.

        All tensors that are on their way are given up. TrainingError as for the first meeting.
        """
        self._disconnect()
        limit = time.monotonic() + JOIN
        try:
            while not self._try_rendezvous(place, limit):
                time.sleep(POLL)
        except RuntimeError as error:
            raise TrainingError(self._lost(None)) from error
        self._blamed: int | None = None
        self._done.clear()
        self._heard = time.monotonic()  # when the store last answered
        self._threads = [
            threading.Thread(target=self._watching, args=(self._store.clone(),), daemon=True),
            threading.Thread(target=self._watching_the_store, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
            self.all_reduce(torch.zeros(1, device=self.device))  # all have finished
            self._done.set()
            for thread in self._threads:
                thread.join()
            self.all_reduce(torch.zeros(1, device=self.device))  # nobody watches any more
            dist.destroy_process_group()

    def print_once(self, text: str) -> None:
        """Print it, once."""
        if self.rank == 0:
            print(text, flush=True)

    def send(self, tensor: Tensor, to: int) -> None:
        """Send without waiting; the tensor must not be written before `flush`."""
        tensor = self._sealed(tensor.contiguous())
        with self.blaming(to):
            self._sent.append((to, dist.isend(tensor, to, group=self._ways[to < self.rank]), tensor))

    def receive(self, like: Tensor, source: int) -> PendingMessage:
        """The next message from a rank, as large as `like`; to be asked for in the order in which it sends."""
        tensor = torch.empty_like(like, memory_format=torch.contiguous_format)
        tensor = self._sealed(tensor)
        with self.blaming(source):
            return PendingMessage(
                self, source, dist.irecv(tensor, source, group=self._ways[self.rank < source]), tensor, like
            )

    def unsealed(self, tensor: Tensor, like: Tensor, source: int) -> Tensor:
        """What came from a rank, no earlier than its link lets it come."""
        if self.links is None:
            return tensor
        content, sent = tensor[:-8], float(tensor[-8:].view(torch.float64))
        time.sleep(max(0.0, sent + self.links.seconds(source, self.rank, len(content)) - time.monotonic()))
        return content.view(like.dtype).view(like.shape)

    def _sealed(self, tensor: Tensor) -> Tensor:
        """The bytes of a tensor and the time, where links are to be slow; else the tensor."""
        if self.links is None:
            return tensor
        now = torch.tensor([time.monotonic()], dtype=torch.float64, device=tensor.device)
        return torch.cat([tensor.reshape(-1).view(torch.uint8), now.view(torch.uint8)])

    def flush(self) -> None:
        """Wait until all that was sent has arrived."""
        for to, work, _ in self._sent:
            with self.blaming(to):
                work.wait()
        self._sent = []

    def all_reduce(self, tensor: Tensor, ranks: Sequence[int] | None = None) -> Tensor:
        """The sum over all processes, or over these ranks, which all ask for it: an all-reduce, in place."""
        ranks = tuple(range(self.size) if ranks is None else ranks)
        if len(ranks) > 1 and tensor.numel():
            with self.blaming(None):
                if ranks not in self._groups:
                    self._groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
                dist.all_reduce(tensor, group=self._groups[ranks])
        return tensor

    def broadcast(self, news: object, source: int) -> object:
        """What rank `source` has for all others, which give nothing: a broadcast."""
        box = [news]
        with self.blaming(None):
            dist.broadcast_object_list(box, source, device=self.device)
        return box[0]

    @contextmanager
    def blaming(self, rank: int | None) -> Iterator[None]:
        """Turn what a broken connection to a rank raises into a TrainingError that names the rank to blame.

        None: of many, it is not known which; the watch finds out and ends this process. Where ranks are replaceable,
        who is lost shows at the next meeting.
        """
        try:
            yield
        except RuntimeError as error:
            if self.replaceable:
                raise LostRank(f"a connection broke, and the run cannot go on from here: {error}") from error
            if rank is None:
                time.sleep(2 * self.timeout)
                raise TrainingError(f"an exchange between all ranks failed: {error}") from error
            raise TrainingError(self._lost(self._agreed(rank))) from error

    def _connect(self) -> dist.Store:
        """The store of small values that all processes see; torchrun keeps it, with another launcher rank 0 does."""
        self._agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = dist.TCPStore(
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            int(os.environ.get("MASTER_PORT", "0")),
            is_master=self.rank == 0 and not self._agents,
            wait_for_workers=False,
            timeout=timedelta(seconds=JOIN),
        )
        launch = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore("/".join(("swarmbook", *launch)), store)

    def _try_rendezvous(self, place: int | None, limit: float) -> bool:
        """Take part in the next meeting; False if it came to nothing, as somebody was lost meanwhile."""
        number = self._all.add("meeting", 0)
        self._store = dist.PrefixStore(str(number), self._all)
        mine = f"place {self.rank}"
        if self._store.check([mine]):  # it was broken up, if it is over for this rank
            self._all.compare_set("meeting", str(number), str(number + 1))
            return False
        self._store.set(f"beat {self.rank}", "0")
        self._store.set(mine, str(place))
        names = [f"place {rank}" for rank in range(self.size)]
        while not self._store.check(names):
            if self._all.add("meeting", 0) != number:
                return False
            if time.monotonic() > limit:
                missing = [str(rank) for rank, name in enumerate(names) if not self._store.check([name])]
                raise TrainingError(
                    f"rank {', '.join(missing)} of {self.size} did not come within {JOIN:g} s: start one process for "
                    "each rank at the same time"
                )
            time.sleep(POLL)
        places = [self._store.get(name).decode() for name in names]
        self.places = [None if place == "None" else int(place) for place in places]
        # Waiting for a rank that shows signs of life has a limit too, but a later one: the watch is to speak first.
        limit = timedelta(seconds=3 * self.timeout)
        store = dist.PrefixStore("groups", self._store)
        try:
            dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.size, timeout=limit)
            self._ways = [dist.new_group(), dist.new_group()]  # up and down
        except RuntimeError as error:
            if not self.replaceable:
                raise TrainingError(f"rank {self.rank} could not reach all others: {error}") from error
            self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        """Close all connections, so that others need not wait for this rank."""
        self._done.set()
        self._sent, self._ways = [], []
        self._groups = {}
        gc.collect()  # a connection closes when nothing refers to it any more
        if dist.is_initialized():
            dist.destroy_process_group()
        for thread in self._threads:
            thread.join()

    def _watching(self, store: dist.Store) -> None:
        """Show that this rank lives, and end the process once another one does not.

        One that can be replaced has as long again to be missed by the others, or ended by who started it.
        """
        patience = self.timeout * (2 if self.replaceable else 1)
        others = [rank for rank in range(self.size) if rank != self.rank]
        seen = {rank: ("0", time.monotonic()) for rank in others}
        beats = 0
        while not self._done.wait(BEAT):
            beats += 1
            try:
                store.set(f"beat {self.rank}", str(beats))
                if store.check(["lost"]):
                    self._end(self._agreed(int(store.get("lost"))))
                for rank in others:
                    beat = store.get(f"beat {rank}").decode()
                    if beat != seen[rank][0]:
                        seen[rank] = beat, time.monotonic()
                    elif time.monotonic() - seen[rank][1] > patience:
                        self._end(self._agreed(rank))
            except RuntimeError:
                self._end(None)
            self._heard = time.monotonic()

    def _watching_the_store(self) -> None:
        """End the process if the store does not answer: who asks a host that hangs waits for ever."""
        while not self._done.wait(BEAT):
            if time.monotonic() - self._heard > self.timeout + 2 * BEAT:
                self._end(None)

    def _agreed(self, rank: int) -> int | None:
        """Blame a rank; the one to blame is whom the first to notice did. None: the store is gone as well.

        Who keeps the store stays until the others know, for with it the note would go, and they would blame its keeper.
        """
        if self._blamed is not None:
            return self._blamed
        try:
            self._blamed = int(self._store.compare_set("lost", "", str(rank)))
        except RuntimeError:
            return rank if self._agents else 0
        with suppress(RuntimeError):
            self._store.set(f"told {self.rank}", "")
            if self.rank == 0 and not self._agents:
                others = {*range(self.size)} - {self.rank, self._blamed}
                self._store.wait([f"told {other}" for other in others], timedelta(seconds=self.timeout / 2))
        return self._blamed

    def _end(self, lost: int | None) -> None:
        if self._done.wait(BEAT):  # time for the main thread to say so itself, or for a run that has ended
            return
        print(f"rank {self.rank}: {self._lost(lost)}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits within the backend, where no exception reaches it

    def _lost(self, rank: int | None) -> str:
        if rank is None:
            who = "the launcher" if self._agents else "rank 0"
            return f"{who}, which keeps the store that all ranks share, is lost: start the run again"
        return f"rank {rank} is lost: its process ended, hangs, or cannot be reached; start the run again"
