"""Messages between the processes of one run, and which rank is named when one does not come.

It is one concept, longer than most: how ranks meet, what they send, and how they find out who is lost.

- messages between two ranks are read in the order in which they were sent, so they bear no tags. Messages to a higher
  rank and messages to a lower one have a process group each, as NCCL needs it
- every rank shows the others once a second that it lives. A rank that waits in vain names the rank that fell silent,
  not the neighbour that waits for it too. The first to notice leaves a note in the store, which all others repeat
- a process that was killed is noticed when its connections close; one that hangs or is cut off, after `timeout`
- before they connect, all ranks compare what they were started with (`swarmbook.distributed.agreement`)
- processes of one host listen on its loopback alone. torchrun's store is beyond that: it listens wherever it can
- where a lost process may be replaced, the other ranks stay. All close their connections, which wakes those that still
  wait, and have a new `rendezvous`, the new process among them

Serves: `python -m swarmbook.distributed`, and `tests/emulation.py`.
"""

import gc
import ipaddress
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from swarmbook.distributed.agreement import difference
from swarmbook.distributed.emulated_links import EmulatedLinks
from swarmbook.distributed.messages import decode, encode
from swarmbook.errors import ConfigError, TrainingError

BEAT = 1.0  # seconds between two signs of life
JOIN = 300.0  # seconds for all ranks to come: they start together, but do not load equally fast
POLL = 0.05  # seconds between two looks at who has come


class LostRank(TrainingError):
    """A rank or the connection to it was lost, and a new process may take its place: have a new rendezvous."""


class Finished(Exception):
    """The run has been finished by the other ranks, which do not come to a rendezvous any more."""


def world() -> tuple[int, int]:
    """The rank of this process and their number, as torchrun says in the environment; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def loopback(host: str) -> bool:
    """Whether this is an address that no other host can reach; a name counts by what it stands for here."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class PendingMessage:
    """A message on its way here: `read` waits for it and gives the tensor. Raises as `Communicator.blaming`."""

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
    """The connections of this process to all others that torchrun started with it.

    timeout: seconds after which a rank that gives no sign of life counts as lost. replaceable: whether a new process
    may take the place of a lost one; the others then raise LostRank, where they would else raise a TrainingError that
    names the lost rank. links: how slow messages are made; None leaves them as they are. stated: what all ranks must
    have alike, as text by name. Raises ConfigError, with who has what, if they do
    not; TrainingError, with the ranks that are missing, if not all have come after `JOIN` seconds, or if the port is
    taken. As a context manager it waits at its end until all ranks are there, unless there was an error.
    """

    def __init__(
        self,
        device: torch.device,
        timeout: float,
        replaceable: bool = False,
        links: EmulatedLinks | None = None,
        stated: Mapping[str, str] | None = None,
    ):
        self.rank, self.size = world()
        self.device, self.timeout, self.replaceable, self.links = device, timeout, replaceable, links
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._sent: list[tuple[int, dist.Work, Tensor]] = []
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._ways: list[dist.ProcessGroup] = []
        self._threads: list[threading.Thread] = []
        self._done = threading.Event()
        self._all = self._connect()  # the store of every rendezvous
        self._all.set_timeout(timedelta(seconds=timeout))
        self._compare(stated or {})
        self.rendezvous(None)

    def rendezvous(self, place: int | None) -> None:
        """Connect all ranks, or connect them anew after a loss; tensors that are on their way are given up.

        place: how far this process is in the run; None if it is new. Afterwards `places` has that of every rank.
        TrainingError if not all ranks come; Finished if they have no need to.
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
        if kind is None and self.replaceable:  # after `conclude` nobody needs the others
            self._disconnect()
        elif kind is None:
            self.flush()
            self.all_reduce(torch.zeros(1, device=self.device))  # all have finished
            self._done.set()
            for thread in self._threads:
                thread.join()
            self.all_reduce(torch.zeros(1, device=self.device))  # nobody watches any more
            dist.destroy_process_group()

    def conclude(self) -> None:
        """Where ranks are replaceable, rank 0 says at the end that it has kept the result; the others wait for that.

        LostRank if a rank was lost before, and all are to meet again. A rank that is lost afterwards is not missed.
        """
        try:
            if self.rank == 0:
                self._all.set("finished", "")
            while not self._all.check(["finished"]):
                if self._all.add("rendezvous", 0) != self._number:
                    raise LostRank("a rank was lost before the result was kept")
                time.sleep(POLL)
            self._all.set(f"concluded {self.rank}", "")
        except RuntimeError as error:
            raise TrainingError(self._lost(None)) from error
        if self.rank == 0 and not self._agents:  # which keeps the store
            with suppress(RuntimeError):
                others = [f"concluded {rank}" for rank in range(1, self.size)]
                self._all.wait(others, timedelta(seconds=self.timeout))

    def print_once(self, text: str) -> None:
        """Print it on rank 0 alone."""
        if self.rank == 0:
            print(text, flush=True)

    def send(self, tensor: Tensor, to: int) -> None:
        """Send without waiting; the tensor must not be written before `flush`."""
        tensor = self._sealed(tensor.contiguous())
        with self.blaming(to):
            self._sent.append((to, dist.isend(tensor, to, group=self._ways[to < self.rank]), tensor))

    def receive(self, like: Tensor, source: int) -> PendingMessage:
        """The next message from a rank, of the shape and type of `like`. Ask in the order in which the rank sends."""
        tensor = torch.empty_like(like, memory_format=torch.contiguous_format)
        tensor = self._sealed(tensor)
        with self.blaming(source):
            return PendingMessage(
                self, source, dist.irecv(tensor, source, group=self._ways[self.rank < source]), tensor, like
            )

    def unsealed(self, tensor: Tensor, like: Tensor, source: int) -> Tensor:
        """The content of a message from a rank, once the emulated link to that rank lets it through."""
        if self.links is None:
            return tensor
        content, sent = tensor[:-8], float(tensor[-8:].view(torch.float64))
        time.sleep(max(0.0, sent + self.links.seconds(source, self.rank, len(content)) - time.monotonic()))
        return content.view(like.dtype).view(like.shape)

    def _sealed(self, tensor: Tensor) -> Tensor:
        """A tensor as it is sent: its bytes and the time where links are emulated, else itself."""
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
        """The sum over all ranks, or over the given ones, written in place; each of them must call this."""
        ranks = tuple(range(self.size) if ranks is None else ranks)
        if len(ranks) > 1 and tensor.numel():
            with self.blaming(None):
                if ranks not in self._groups:
                    self._groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
                dist.all_reduce(tensor, group=self._groups[ranks])
        return tensor

    def broadcast(self, news: Any, source: int) -> Any:
        """The `news` of rank `source`, on every rank; what other ranks give is not looked at.

        They are what `swarmbook.distributed.messages` can send, with lists for tuples and tensors on the CPU.
        """
        content = torch.frombuffer(bytearray(encode(news)), dtype=torch.uint8).to(self.device)
        size = torch.tensor([len(content)], device=self.device)
        with self.blaming(None):
            dist.broadcast(size, source)
            content = content if self.rank == source else content.new_empty(int(size))
            dist.broadcast(content, source)
        return decode(content.cpu().numpy().tobytes())

    @contextmanager
    def blaming(self, rank: int | None) -> Iterator[None]:
        """Turn what torch raises over a broken connection into a TrainingError that names the lost rank.

        rank: the one at the other end; None if there are many. The watching thread then finds out which is lost, and
        ends this process. Where ranks are replaceable, it is LostRank: the next rendezvous shows who is lost.
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
        """The store of small values that all processes see. torchrun keeps it; with another launcher rank 0 does."""
        self._agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
        local = loopback(host)
        if self.backend == "gloo" and (local or os.environ.get("LOCAL_WORLD_SIZE") == str(self.size)):
            names = {name for _, name in socket.if_nameindex()}
            for name in names & {"lo", "lo0"}:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        keeps = self.rank == 0 and not self._agents
        where = f"at {host}:{port}"
        cure = "give all ranks the address of rank 0 in MASTER_ADDR, and a port that is free there in MASTER_PORT"
        alarm = threading.Timer(self.timeout, self._end, [None, f"what listens {where} is no store: {cure}"])
        alarm.daemon = True
        try:
            listening = socket.create_server((host, port), backlog=self.size).detach() if keeps and local else None
            if not keeps:
                self._await_listener(host, port)
                alarm.start()  # torch waits without end for a server that says nothing
            store = dist.TCPStore(
                host,
                port,
                is_master=keeps,
                wait_for_workers=False,
                timeout=timedelta(seconds=JOIN),
                master_listen_fd=listening,
            )
        except (OSError, RuntimeError) as error:
            who = "cannot listen" if keeps else "finds no store"
            raise TrainingError(f"rank {self.rank} {who} {where}: {str(error).splitlines()[0]}; {cure}") from error
        finally:
            alarm.cancel()
        launch = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore("/".join(("swarmbook", *launch)), store)

    def _await_listener(self, host: str, port: int) -> None:
        """Wait until something listens there; OSError if nothing does within `JOIN` seconds."""
        limit = time.monotonic() + JOIN
        while True:
            try:
                return socket.create_connection((host, port), timeout=BEAT).close()
            except OSError:
                if time.monotonic() > limit:
                    raise
            time.sleep(POLL)

    def _compare(self, stated: Mapping[str, str]) -> None:
        """Wait until all ranks have said what they were started with; ConfigError if it is not the same."""
        self._all.set(f"stated {self.rank}", json.dumps(stated))
        statements: dict[int, dict[str, str]] = {}
        begun, wrong = time.monotonic(), None
        with suppress(RuntimeError):  # rank 0 keeps the store, and may have refused already
            while len(statements) < self.size and time.monotonic() - begun < (self.timeout if wrong else JOIN):
                for rank in set(range(self.size)) - statements.keys():
                    if self._all.check([f"stated {rank}"]):
                        statements[rank] = json.loads(self._all.get(f"stated {rank}"))
                wrong = difference(statements)
                time.sleep(POLL)
            if wrong:  # all are to have read it before rank 0 ends, and the store with it
                self._all.set(f"refused {self.rank}", "")
                self._all.wait([f"refused {rank}" for rank in statements], timedelta(seconds=self.timeout))
        if wrong:
            raise ConfigError(wrong)
        if missing := set(range(self.size)) - statements.keys():
            raise TrainingError(self._missing(missing))

    def _missing(self, ranks: Iterable[int]) -> str:
        return (
            f"rank {', '.join(map(str, sorted(ranks)))} of {self.size} did not come within {JOIN:g} s: start one "
            "process for each rank at the same time"
        )

    def _try_rendezvous(self, place: int | None, limit: float) -> bool:
        """Take part in the next rendezvous; False if it failed because a rank was lost meanwhile."""
        if self._all.check(["finished"]):
            raise Finished
        self._number = number = self._all.add("rendezvous", 0)
        self._store = dist.PrefixStore(str(number), self._all)
        mine = f"place {self.rank}"
        if self._store.check([mine]):  # it was broken up, if it is over for this rank
            self._all.compare_set("rendezvous", str(number), str(number + 1))
            return False
        self._store.set(f"beat {self.rank}", "0")
        self._store.set(mine, str(place))
        names = [f"place {rank}" for rank in range(self.size)]
        while not self._store.check(names):
            if self._all.add("rendezvous", 0) != number or self._all.check(["finished"]):
                return False
            if time.monotonic() > limit:
                missing = [rank for rank, name in enumerate(names) if not self._store.check([name])]
                raise TrainingError(self._missing(missing))
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
        """Show that this rank lives, and end this process once another rank shows no sign of life.

        Where ranks are replaceable it waits twice as long, so that the others notice, or the supervisor ends it, first.
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
        """End the process if the store does not answer, because a request to a host that hangs never returns."""
        while not self._done.wait(BEAT):
            if time.monotonic() - self._heard > self.timeout + 2 * BEAT:
                self._end(None)

    def _agreed(self, rank: int) -> int | None:
        """The lost rank on which all agree: the one that the first to notice named. None if the store is lost as well.

        rank: the one that this process would name. Rank 0, if it keeps the store, waits until the others have read
        the note. Without the store they would name rank 0 instead.
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

    def _end(self, lost: int | None, why: str = "") -> None:
        if self._done.wait(BEAT):  # time for the main thread to say so itself, or for a run that has ended
            return
        print(f"rank {self.rank}: {why or self._lost(lost)}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits within the backend, where no exception reaches it

    def _lost(self, rank: int | None) -> str:
        if rank is None:
            who = "the launcher" if self._agents else "rank 0"
            return f"{who}, which keeps the store that all ranks share, is lost: start the run again"
        return f"rank {rank} is lost: its process ended, hangs, or cannot be reached; start the run again"
