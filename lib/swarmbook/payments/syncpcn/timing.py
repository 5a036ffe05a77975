"""The deadlines of SyncPCN: when a hop expires, and until when parties and members act on it.

Serves: SyncPCN in all its figures; claims S4 (endings on time), S8 and S13, and the choice of delta.
"""

import math
from dataclasses import dataclass
from itertools import accumulate, repeat

from swarmbook.errors import ConfigError, finite, whole

TICK = 2.0**-20  # the last deadline is a whole number of ticks, so that no rounding error makes a message late


@dataclass(frozen=True)
class Timing:
    """Deadlines that follow from two bounds, both in the simulation's unit of time.

    delta: the longest delay of a message. skew: the largest difference between any two clocks. hops: of the longest
    path in which a party takes part, which bounds for how long anybody can have its coins locked. expiry: T_i, when the
    lock of hop i expires. Raises ConfigError unless 0 <= skew <= delta and delta > 0, and hops are at least 1.

    The deadlines leave no time to wait for the turn on a busy channel if messages really take delta. Where payments
    compete, choose delta well above what messages take.
    """

    delta: float = 1.0
    skew: float = 0.0
    hops: int = 20  # as in Lightning

    def __post_init__(self) -> None:
        finite("delta", self.delta), finite("skew", self.skew), whole("hops", self.hops, 1)
        if not self.delta > 0 or not 0 <= self.skew <= self.delta:
            raise ConfigError(f"delta={self.delta}, skew={self.skew}: give delta > 0 and 0 <= skew <= delta")

    @property
    def margin(self) -> float:
        """Theta = 4 delta + 2 skew, by which a hop expires before the one upstream."""
        return 4 * self.delta + 2 * self.skew

    @property
    def refund_wait(self) -> float:
        """How long after T_i the payer waits for the key of a claim made in time."""
        return 2 * self.delta

    def expiries(self, start: float, hops: int) -> list[float]:
        """T_1 ... T_n: T_n = start + 3 n delta + 3 delta (+ 2 skew), T_i = T_n + (n - i) margin.

        T_(i+1) is T_i less the margin to the last bit, as those who check it compute it (`apart`).
        """
        last = start + 3 * hops * self.delta + 3 * self.delta + 2 * self.skew
        first = math.ceil(last / TICK) * TICK + (hops - 1) * self.margin
        return list(accumulate(repeat(self.margin, hops - 1), lambda expiry, margin: expiry - margin, initial=first))

    def apart(self, incoming: float, outgoing: float) -> bool:
        """Whether the outgoing hop expires early enough before the incoming one."""
        return outgoing <= incoming - self.margin

    def latest(self, now: float) -> float:
        """The latest expiry of a lock that a party makes now, by its clock: T_1 of the longest path, with the skew."""
        return self.expiries(now, self.hops)[0] + self.skew

    def open_by(self, expiry: float) -> float:
        """Latest time to send a key so that, if it is ignored, a claim still arrives in time."""
        return expiry - 3 * self.delta - self.skew

    def claim_by(self, expiry: float) -> float:
        """Latest time to send a claim so that it arrives in time."""
        return expiry - self.delta - self.skew

    def key_by(self, expiry: float) -> float:
        """Latest time at which a payer can hear of a claim made in time; it does not take a key after that."""
        return expiry + self.delta + self.skew

    def refund_from(self, expiry: float) -> float:
        """From when on a member votes for a refund, by its own clock."""
        return expiry + self.refund_wait - self.skew
