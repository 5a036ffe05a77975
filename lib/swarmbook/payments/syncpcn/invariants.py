"""What holds in a world of SyncPCN after every event, and which rule of the protocol makes it hold.

`broken` looks at what honest parties and honest members of correct committees have, and names what is wrong:

- S1 **one state a number.** Two honest parties of a channel are at the same state, or one of them at what the other one
  has proposed. Rule: only the party that has the turn proposes, and the turn is given away with a signature or `Grant`.
- S2 **coins.** No state that an honest party has signed creates coins, loses any, or has a negative balance. Rule: both
  parties compute the next state on their own (`channel.follow`), and a lock is decided once in it.
- S3 **names.** No lock that has left a channel is in its state again. Rule: a name is used once in a channel.
- S4 **paid with a key.** Where an outgoing lock is paid, its payer has the key. Rule: votes for PAID and the proposals
  of payees carry the key, and the payer signs without it nothing that pays (`ChannelParty.may_pay`).
- S5 **one of two.** A party sends the key of an incoming lock, or gives the lock back, and never both. Rule: whichever
  comes first excludes the other (`Transit`).
- S6 **given back when nothing can be paid.** Who gives an incoming lock back has never proposed the outgoing one, or a
  quorum holds a state without it, or a certificate of REFUNDED. Rule: `fail` waits for one of these.
- S7 **certified before opened.** Who has sent a key holds, or held, a certificate of the incoming lock. Rule: a payee
  goes on when a quorum has signed.
- S8 **claims stand.** While a claim is under way, the state that both parties have signed holds the lock, and so does
  the one that the payee has proposed, unless it settles it. Rule: in a dispute nothing new is signed.
- S9 **votes agree.** Honest members that have voted PAID and honest members that have voted REFUNDED are never enough
  for two certificates. Rule: a member votes once on a lock, and quorums meet in an honest member.
- S10 **claims win.** When no clock of an honest member is before T_i any more, a lock whose key an honest payee sent in
  time is paid, or all honest members have voted PAID. Rule: the deadlines of `Timing`, and S8.
- S11 **refunds win.** After T_i + 4 delta no lock of an honest payer is left undecided. Rule: the payer asks at
  T_i + 2 delta, when no vote for PAID can be under way any more, and concedes if it has the key.
- S12 **not for long.** No party locks coins beyond the deadlines of the longest path. Rule: it looks at the deadline
  before it locks (`Timing.latest`), since a sender could name any.
- S13 **passed back.** When a quorum holds a state from which an outgoing lock went unpaid, its payer has given its
  incoming lock back, or has its key. Rule: `fail` follows each way in which a lock can go (`certified`, `left`,
  `decided`).

Some rules stand beside another one, so that the search may not miss a broken one. What each does alone:

- `may_pay` discharges S4: a payer without the key signs nothing that pays. That proposals, decisions folded into them
  and votes *carry the key* discharges what S4 costs. Without it an honest payer would refuse a lock that is decided
  against it, the channel would stand still, and it would learn the key too late to claim upstream (S10 there).
- That *nothing new is signed in a dispute* keeps S8 from then on. That a claim *proves the lock in both states* covers
  what was proposed before, which the payer may have signed and shown to members alone (S10).
- *Deadlines `margin` apart* leave the time to claim upstream (S10); *`key_by`* keeps a payer from signing later than it
  can still do so; *`done` and `sent`* (S5) keep a late key from being used against a lock that was given back.
- *Votes once* (S9) keep a lock from having two certificates. A concession may stand beside a refund: it is the payer's
  own, and counts more (`hop`, `decided`).

The proof assumes delays of at most delta, clocks at most `skew` apart, at most f faulty members in the committee, and
signatures that nobody forges. It covers what is in the code; closes in the middle of an update are not modelled.

Serves: the tests, after every event; claims S8 and S12.
"""

from collections.abc import Iterator

from swarmbook.payments.channel import Lock, lock_digest
from swarmbook.payments.channel_update import ChannelEnd
from swarmbook.payments.outcomes import Decision, Outcome
from swarmbook.payments.payment_network import World
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn.disputes import Transit
from swarmbook.payments.syncpcn.party import SyncPCNParty


def broken(world: World, changed: Node | None = None) -> list[str]:
    """The invariants that do not hold now, each as a sentence that begins with its name.

    changed: the one node that has changed since the last look, so that only its channels need another one.
    """
    found: list[str] = []
    every = range(len(world.topology.channels))
    cids = every if changed is None else getattr(changed, "ends", None) or [changed.cid]
    names = sorted({name for cid in cids for name in world.topology.channels[cid][:2]} - world.faulty)
    for cid in cids:
        ends = [world.party(name).ends[cid] for name in world.honest_parties(cid) if cid in world.party(name).ends]
        if not ends or not world.correct(cid):
            continue
        if len(ends) == 2:
            found += _pair(*ends)
        for end in ends:
            found += _end(world, end)
    for party in map(world.party, names):
        if all(map(world.correct, party.ends)):
            found += _party(world, party)
    return found


def _pair(left: ChannelEnd, right: ChannelEnd) -> Iterator[str]:
    behind, ahead = sorted((left, right), key=lambda end: end.state.seq)
    if behind.state.seq == ahead.state.seq:
        agree = behind.commitment.root == ahead.commitment.root
    else:
        agree = behind.pending is not None and behind.pending[1].root == ahead.commitment.root
    if not agree:
        yield f"S1: {left.party} is at {left.state}, {right.party} at {right.state}"
    if left.turn and right.turn and behind.state.seq == ahead.state.seq:
        yield f"S1: both parties of C{left.cid + 1} have the turn"


def _end(world: World, end: ChannelEnd) -> Iterator[str]:
    capacity = sum(world.topology.channels[end.cid][2:])
    states = [end.state] + ([end.pending[0]] if end.pending is not None else [])
    for state in states:
        if state.capacity != capacity or min(state.left, state.right) < 0:
            yield f"S2: {end.party} has signed {state}"
        for lock in state.locks:
            if lock.pid in end.past:
                yield f"S3: {end.party} has {lock} again"
    for dispute in end.disputes.values():
        lock = dispute.lock
        everywhere = len(end.proofs(lock)) == len(states) or _opens(end, lock)
        if dispute.key is not None and not (end.holds(lock) and everywhere):
            yield f"S8: {end.party} claims {lock}, which its states do not hold"
    for about in {about for member in world.honest(end.cid) for about in member.votes}:
        votes = [member.votes.get(about) for member in world.honest(end.cid)]
        needed = world.topology.quorum - world.bad_members(end.cid)
        if min(votes.count(Decision.PAID), votes.count(Decision.REFUNDED)) >= needed:
            yield f"S9: members of C{end.cid + 1} voted {votes}"


def _opens(end: ChannelEnd, lock: Lock) -> bool:
    """Whether a payee has proposed that its lock be paid."""
    if end.pending is None:
        return False
    change, about = end.pending[3], lock_digest(lock, end.party.keys)
    return change.what == "open" and change.pid == lock.pid or any(r.about == about for r in change.resolved)


def _party(world: World, party: SyncPCNParty) -> Iterator[str]:
    for transit in party.outbound.values():
        yield from _outgoing(world, party, transit)
    for transit in party.inbound.values():
        if transit.sent is not None and transit.done:
            yield f"S5: {party} has sent the key of {transit.incoming}, and gives it back"
        if transit.sent is not None:
            yield from _opened(world, party, transit)


def _outgoing(world: World, party: SyncPCNParty, transit: Transit) -> Iterator[str]:
    cid, lock = transit.outgoing
    end = party.ends[cid]
    resolved = end.resolved.get(lock.pid)
    outcome = end.outcome(lock)
    if outcome is None and resolved is not None:
        outcome = Outcome.REFUNDED if resolved.decision == Decision.REFUNDED else Outcome.PAID
    if outcome == Outcome.PAID and transit.key is None:
        yield f"S4: {party} has paid {lock} without its key"
    open_still = outcome is None and (bool(end.proofs(lock)) or end.waits(lock))
    if transit.done and (open_still or outcome == Outcome.PAID):
        yield f"S6: {party} gives back {transit.incoming} while {lock} is {outcome or 'locked'}"
    passed_back = transit.done or transit.key is not None
    if outcome == Outcome.REFUNDED and lock.pid in end.past and end.certified == end.state.seq and not passed_back:
        yield f"S13: {party} keeps {transit.incoming}, and {lock} is gone"
    if open_still and lock.expiry > party.timing.latest(party.clock):
        yield f"S12: {party} has {lock} for too long"
    if open_still and party.clock > lock.expiry + 4 * party.timing.delta + party.timing.skew:
        yield f"S11: {party} still has {lock}"


def _opened(world: World, party: SyncPCNParty, transit: Transit) -> Iterator[str]:
    cid, lock = transit.incoming
    end = party.ends[cid]
    resolved = end.resolved.get(lock.pid)
    paid = end.outcome(lock) == Outcome.PAID or (resolved and resolved.decision != Decision.REFUNDED)
    if not paid and not end.holds(lock):
        yield f"S7: {party} has sent the key of {lock}, which no state of its channel holds"
    members = world.honest(cid)
    late = transit.sent + party.skew > party.timing.open_by(lock.expiry)
    if paid or late or any(member.clock <= lock.expiry for member in members):
        return
    about = lock_digest(lock, world.keys)
    settled = end.pending[1].root if _opens(end, lock) else None  # the payer may have shown this to members alone
    if any(member.votes.get(about) != Decision.PAID and member.root != settled for member in members):
        yield f"S10: {party} sent the key of {lock} in time, and is not paid"
