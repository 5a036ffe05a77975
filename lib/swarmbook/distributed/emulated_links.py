"""Links between processes of one machine, as slow as the links between the places that the processes stand for.

- a message is held back on arrival until latency + size / bandwidth after it was sent, as in the simulations. Messages
  do not share a link: each takes its own time, however many are on their way
- the sender writes the time on the message, so all processes must read the same clock
- sums over all ranks are not messages between two places, and go as fast as the machine lets them

Serves: `python -m swarmbook.distributed --places`, and `tests/benchmarks/links.py`.
"""

import math
from dataclasses import dataclass

from swarmbook.errors import ConfigError
from swarmbook.simulation.network import Network


@dataclass(frozen=True)
class EmulatedLinks:
    """Links of ranks that stand for the nodes of a network, rank r for node r.

    pace: real seconds for one second of the network. weight: bytes that one sent byte stands for, so that messages of a
    small model take as long as those of a large one. Raises ConfigError unless both are positive.
    """

    network: Network
    pace: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("pace", "weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive and finite")

    def seconds(self, a: int, b: int, size: int) -> float:
        """Real seconds that a message of `size` bytes takes from rank a to rank b."""
        return self.pace * self.network.seconds(a, b, self.weight * size)
