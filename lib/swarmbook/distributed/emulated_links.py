"""EmulatedLinks between processes that are as slow as those between the places they stand for.

- a message is held back on arrival until latency + size / bandwidth after it was sent, as the simulations have it:
  messages share no links, so each takes its own time, however many are on their way
- the sender writes the time on the message, so all processes must read the same clock: one machine
- sums over all ranks are not messages between two places, and go as fast as the machine lets them
"""

from dataclasses import dataclass

from swarmbook.errors import ConfigError
from swarmbook.simulation.network import Network


@dataclass(frozen=True)
class EmulatedLinks:
    """Rank r stands at node r of a network.

    pace: real seconds for one of the network's. weight: bytes that one sent byte stands for, so that a small model's
    messages take as long as a large one's. Raises ConfigError unless both are positive.
    """

    network: Network
    pace: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("pace", "weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")

    def seconds(self, a: int, b: int, size: int) -> float:
        """Real seconds that a message of `size` bytes takes from rank a to rank b."""
        return self.pace * self.network.seconds(a, b, self.weight * size)
