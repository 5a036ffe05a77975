"""Pictures of runs, drawn from their traces: every arrow is a logged message.

- `lanes` puts parties and committees side by side along a path; the members of a committee share a lane.
- `arrows` gathers the messages of one kind that leave one lane and reach another at the same times into one arrow.
- `overview` draws a run as a map, `instant` what is on its way at one time, and `sequence` a run over time.

Serves: the maps, the pictures through a trace, the twin runs, and both protocols message by message.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from swarmbook.payments.simulation import Event


@dataclass(frozen=True)
class Arrow:
    """`count` messages of one kind from a lane to another, sent and delivered at the same times."""

    kind: str
    source: str
    target: str
    sent: float
    arrived: float
    count: int


def lane(node: str) -> str:
    """A party is its own lane, a member belongs to its committee's."""
    return node.split(".")[0]


def lanes(hops: int) -> list[str]:
    """u0, C1, u1, ..., Cn, un."""
    names = ["u0"]
    for i in range(1, hops + 1):
        names += [f"C{i}", f"u{i}"]
    return names


def named(event: Event) -> str:
    """The kind of a message; of a proposal what it proposes, of a share or vote what it says."""
    message = event.message
    change = getattr(message, "change", None)
    what = getattr(change, "what", None) or getattr(message, "what", None) or getattr(message, "decision", None)
    return f"{event.kind} {what}" if what else event.kind


def arrows(trace: Sequence[Event], label: Callable[[Event], str] = named) -> list[Arrow]:
    """All messages that were delivered, gathered."""
    sent = {event.number: event for event in trace if event.what == "send"}
    counts: dict[tuple, int] = {}
    for event in trace:
        if event.what == "deliver":
            start = sent[event.number]
            key = label(event), lane(start.node), lane(event.node), start.time, event.time
            counts[key] = counts.get(key, 0) + 1
    return [Arrow(*key, count) for key, count in counts.items()]


def sequence(
    trace: Sequence[Event],
    hops: int,
    ax: Axes,
    colours: Mapping[str, str],
    until: float = float("inf"),
    numbers: bool = True,
) -> None:
    """Time downwards, one lane a party or committee; an arrow's number says how many messages it stands for.

    colours: of each kind that is drawn, by the beginning of its name. Lines bear the kinds as their labels.
    """
    place = {name: i for i, name in enumerate(lanes(hops))}
    shown, seen = set(), set()
    for arrow in arrows(trace):
        kind = next((kind for kind in colours if arrow.kind.startswith(kind)), None)
        if kind is None or arrow.sent > until or arrow.source == arrow.target:
            continue
        x0, x1 = place[arrow.source], place[arrow.target]
        label = None if kind in shown else kind
        ax.plot([x0, x1], [arrow.sent, arrow.arrived], color=colours[kind], lw=1.3, alpha=0.85, label=label)
        ax.plot(x1, arrow.arrived, ">" if x1 > x0 else "<", color=colours[kind], ms=3.5)
        shown.add(kind)
        spot = (x0, x1, arrow.sent, arrow.arrived)
        if numbers and arrow.count > 1 and spot not in seen:
            seen.add(spot)
            where = x0 + 0.35 * (x1 - x0), arrow.sent + 0.35 * (arrow.arrived - arrow.sent)
            box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}
            ax.text(*where, str(arrow.count), fontsize=6.5, ha="center", va="center", bbox=box)
    for name, i in place.items():
        ax.axvline(i, color="0.75" if name[0] == "C" else "0.35", lw=0.8, zorder=0)
    ax.set_xticks(range(len(place)), list(place))
    ax.xaxis.tick_top()
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_ylabel("time (message delays)")


def overview(trace: Sequence[Event], hops: int, members: int, ax: Axes, colours: Mapping[str, str]) -> int:
    """Parties in a row, the members of each channel's committee above it; lines are the links that carried messages.

    Returns how many different links are drawn.
    """
    sends = [event for event in trace if event.what == "send" and event.node != event.peer]
    return _map(sends, hops, members, ax, colours)


def instant(trace: Sequence[Event], hops: int, members: int, ax: Axes, colours: Mapping[str, str], time: float) -> int:
    """The same map, with the messages that have been sent at `time` and not arrived. Returns how many links."""
    arrived = {event.number for event in trace if event.what == "deliver" and event.time <= time}
    sends = [event for event in trace if event.what == "send" and event.time <= time and event.number not in arrived]
    return _map(sends, hops, members, ax, colours)


def _map(sends: Sequence[Event], hops: int, members: int, ax: Axes, colours: Mapping[str, str]) -> int:
    places = {f"u{i}": (2.0 * i, 0.0) for i in range(hops + 1)}
    for cid in range(hops):
        for k in range(members):
            places[f"C{cid + 1}.{k + 1}"] = (2.0 * cid + 1 + 0.42 * (k - (members - 1) / 2), 1.35 - 0.25 * (k % 2))
    drawn, labelled = set(), set()
    for event in sends:
        link = event.node, event.peer, named(event)
        kind = next((kind for kind in colours if named(event).startswith(kind)), None)
        if kind is None or link in drawn:
            continue
        drawn.add(link)
        (x0, y0), (x1, y1) = places[event.node], places[event.peer]
        bend = 0.12 if y0 == y1 else 0.0
        style = {"arrowstyle": "-|>", "color": colours[kind], "lw": 0.9, "alpha": 0.7, "shrinkA": 9, "shrinkB": 9}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})
        if kind not in labelled:
            labelled.add(kind)
            ax.plot([], [], color=colours[kind], label=kind)
    for name, (x, y) in places.items():
        party = name[0] == "u"
        box = {"boxstyle": "circle,pad=0.3" if party else "square,pad=0.25", "fc": "white", "ec": "0.3"}
        ax.text(x, y, name, ha="center", va="center", fontsize=9 if party else 6.5, bbox=box)
    ax.set(xlim=(-0.6, 2 * hops + 0.6), ylim=(-0.45, 1.8))
    ax.axis("off")
    return len(drawn)
