"""What an adversary can say: any message of the protocols, of values that it knows, signed with keys that it has.

This is the adversary of Dolev and Yao (1983). All faulty nodes share what they know. A node that gets a message knows
all values in it, by the name of their field, and the signatures, which it can repeat but not make. A faulty party
knows the states of its channels, what it has proposed, and its keys. From these values follow

- the proof of each lock in each state, and the digest of each lock,
- the key of a lock from that of a neighbouring one and the step between them,
- certificates of the signatures that are known, be they enough or not,
- orders and instructions with other amounts, deadlines and channels.

A message of a class is formed field by field: each field takes one of the values known by its name (`Knowledge.values`)
or one of a few that everybody knows (decisions, small numbers). `SIGNED` says which statement each class signs; the
signature is the faulty sender's, or one that was seen on this very statement. `Propose` and `Cosign` sign the digest
of a state, which is computed with the party's own code.

Messages with nonsense in one field are among them (`JUNK`). What does not have the types that a message declares is
dropped before anybody reads it (`encoding.well_formed`), and honest nodes must refuse the rest without failing.

Honest nodes know who sent a message (channels between nodes are authenticated), so that the sender is always faulty.

What is known and what can be said of it are in one file, since each kind of message needs both.

Serves: the search for violations.
"""

from collections.abc import Callable, Iterable
from itertools import combinations, product
from zlib import crc32

from swarmbook.payments.channel import Change, Lock, Proof, Refused, Resolved, commit, follow, lock_digest, prove
from swarmbook.payments.channel_committee import Ack, Announce
from swarmbook.payments.channel_update import Ask, Cosign, Grant, Propose
from swarmbook.payments.outcomes import Decision
from swarmbook.payments.payment_network import World
from swarmbook.payments.pbft import Commit, Decided, NewView, Prepare, PrePrepare, ViewChange
from swarmbook.payments.psyncpcn.messages import AskNumber, CarriedCertificate, Number, Order, Share
from swarmbook.payments.signatures import Certificate
from swarmbook.payments.simulation import Node
from swarmbook.payments.syncpcn.messages import Claim, Concede, NewerState, RefundRequest, Setup, Vote

Fields = dict[str, object]
JUNK = None, (), "", -1, 99, 0.5, (None,), ("x", ()), b"x", float("nan")  # what no honest node writes into a field
# Which statement the field "signature" of each class signs, of the message's other fields.
SIGNED: dict[type, Callable[[Fields], tuple]] = {
    Ack: lambda m: ("ack", m["cid"], m["seq"], m["root"]),
    Vote: lambda m: ("vote", m["cid"], m["about"], m["decision"]),
    Concede: lambda m: ("concede", m["cid"], m["about"]),
    Share: lambda m: ("share", m["what"], m["cid"], m["pid"]),
    Number: lambda m: ("number", m["cid"], m["side"], m["pid"], m["what"], m["number"]),
    Order: lambda m: Order(**m, signature=None).statement(),
    ViewChange: lambda m: ("ViewChange", m["cid"], m["slot"], m["view"], m["prepared"]),
    **{
        kind: lambda m, kind=kind: (kind.__name__, m["cid"], m["slot"], m["view"], m["value"])
        for kind in (PrePrepare, Prepare, Commit, NewView)
    },
}
# What a faulty node sends, whoever it is: that only some may say it is for the receiver to see to.
KINDS = Setup, Propose, Cosign, Ask, Grant, Claim, RefundRequest, Concede, Announce, Ack, Vote, NewerState
KINDS += Order, Share, Number, AskNumber, CarriedCertificate
KINDS += PrePrepare, Prepare, Commit, ViewChange, NewView, Decided
COMMON: dict[str, tuple] = {  # what everybody knows
    "decision": (Decision.PAID, Decision.REFUNDED, Decision.CONCEDED),
    "what": (Decision.LOCK, Decision.PAID, Decision.ABORT, Decision.READY),
    "slot": (0, 1),
    "view": (0, 1, 2),
    "side": (0, 1),
    "number": (0, 1),
    "seq": (1, 2, 3),
    "prepared": (None,),
    "key": (None,),
    "step": (0,),
    "outgoing": (None,),
}
OFTEN_NONE = "prepared", "outgoing", "pending", "order"
STATE_PROOF = "state"  # the kind of statement that a state's two signatures sign


class Knowledge:
    """What the faulty nodes of a world know. values: by the name of the field; signatures: (who, statement)."""

    def __init__(self, world: World, faulty: Iterable[str]) -> None:
        self.world, self.faulty = world, sorted(faulty)
        self.values: dict[str, dict[object, None]] = {name: dict.fromkeys(known) for name, known in COMMON.items()}
        self.signatures: dict[object, dict[str, object]] = {}  # by statement: who signed it, and how
        self.messages: dict[type, dict[object, None]] = {}
        self._seen: dict[int, object] = {}
        self.states: dict[tuple, tuple] = {}  # (cid, seq, root): state and commitment, of faulty parties
        self.places: dict[Lock, int] = {}  # the channel of each known lock

    def note(self, name: str, value: object) -> None:
        """Know one more value of a field."""
        self.values.setdefault(name, {}).setdefault(value)

    def learn(self, message: object) -> None:
        """Know everything in a message."""
        if id(message) in self._seen:
            return
        self._seen[id(message)] = message  # kept, so that no other message gets its address
        self.messages.setdefault(type(message), {}).setdefault(message)
        self.note(type(message).__name__, message)
        self._take(type(message).__name__, message)
        if isinstance(message, Propose) and message.change.lock is not None:
            self.places.setdefault(message.change.lock, message.cid)

    def _take(self, name: str, value: object) -> None:
        if self._signature(value):
            return
        if isinstance(value, Lock):
            self.note("lock", value)
            self.note("about", lock_digest(value, self.world.keys))
        if isinstance(value, Order):
            self.note("pid", value.pid(self.world.keys))
        if hasattr(value, "_fields"):
            for field in value._fields:
                part = getattr(value, field)
                if not self._signature(part):
                    self.note(field, part)
                self._take(field, part)
        elif isinstance(value, tuple):
            if len(value) == 2 and isinstance(value[1], Lock):
                self.places.setdefault(value[1], value[0])
            for part in value:
                self._take(name, part)

    def _signature(self, value: object) -> bool:
        """Whether this is a mock signature, the pair of signer and statement; it is then known."""
        if type(value) is tuple and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is tuple:
            if not value[1]:
                return False
            if self._signature(value[1]):  # a vote in a certificate: the name, and the signature
                return True
            self.signatures.setdefault(value[1], {})[value[0]] = value
            return True
        return False

    def look(self, node: Node) -> None:
        """Know what a faulty node holds: a party's states and keys."""
        for cid, end in getattr(node, "ends", {}).items():
            self.note("cid", cid)
            held = [(end.state, end.commitment)] + ([end.pending[:2]] if end.pending is not None else [])
            for state, commitment in held:
                key = cid, state.seq, commitment.root
                if key in self.states:
                    continue
                self.states[key] = state, commitment
                self.note("seq", state.seq)
                self.note("root", commitment.root)
                for lock in state.locks:
                    self.note("proof", prove(state, commitment, lock))
                    self.note("lock", lock)
                    self.note("pid", lock.pid)
                    self.note("about", lock_digest(lock, self.world.keys))
                    self.places.setdefault(lock, cid)
            for signature in end.signatures:
                self._signature(signature)
        for key, _ in getattr(node, "invoices", {}).values():
            self.note("key", key)
        for transit in getattr(node, "inbound", {}).values():
            if transit.key is not None:
                self.note("key", transit.key)

    def known_keys(self) -> list[object]:
        """Known keys, and those that follow from them and from known steps."""
        known = dict.fromkeys(self.values["key"])
        for key in [key for key in known if isinstance(key, int)]:
            for step in self.values["step"]:
                known.setdefault(self.world.locks.upstream(key, step))
                known.setdefault(self.world.locks.upstream(key, -step))
        return list(known)

    def certificates(self) -> list[Certificate]:
        """Every statement about a known lock or order, with all signatures that are known or that faulty nodes make.

        Most have too few, and must be refused.
        """
        values, found = self.values, []
        cids = range(len(self.world.topology.channels))
        if hasattr(self.world, "locks"):
            decisions = Decision.PAID, Decision.REFUNDED, Decision.CONCEDED
            about = values.get("about", ())
            statements = [("vote", cid, digest, what) for cid in cids for digest in about for what in decisions]
        else:
            pids = values.get("pid", ())
            statements = [("share", what, cid, pid) for pid in pids for cid in cids for what in values["what"]]
        for statement in statements:
            committee = self.world.committee(statement[1] if statement[0] == "vote" else statement[2])
            known = self.signatures.get(statement, {})
            votes = {name: signature for name, signature in known.items() if name in committee.members}
            for name in self.faulty:
                if name in committee.members:
                    votes[name] = self.world.keys.sign(name, statement)
            if votes:
                found.append(Certificate(statement, tuple(sorted(votes.items()))))
        return found

    def locks(self, field: str) -> list[object]:
        """(channel, lock) of the hop before or after a party: those known, and the same with one part changed."""
        known = dict.fromkeys([*self.values.get("incoming", ()), *self.values.get("outgoing", ())])
        found = [None] if field == "outgoing" else []
        for pair in known:
            if pair is None:
                continue
            cid, lock = pair
            found.append(pair)
            expiries = {other[1].expiry for other in known if other is not None} | {lock.expiry + 100.0}
            found += [(cid, lock._replace(amount=amount)) for amount in (1, lock.amount + 5)]
            found += [(cid, lock._replace(expiry=expiry)) for expiry in sorted(expiries - {lock.expiry})]
        return found

    def domain(self, kind: type, field: str) -> list[object]:
        """The values that a field of a message may take."""
        if field == "key":
            return self.known_keys()
        if field == "certificate":
            return self.certificates()
        if kind is Announce and field in ("left", "right") or kind is Claim and field in ("left", "right"):
            return [None]  # follows from the state
        if field in ("proof", "pending"):  # those known, and those of states that nobody has signed
            locks = [lock for lock in self.values.get("lock", ()) if lock is not None]
            proofs = [*self.values.get("proof", ()), *(self._invented(lock) for lock in locks)]
            return [None, *proofs] if field == "pending" else proofs
        if kind is NewView and field == "requests":
            return self._requests()
        if kind is ViewChange and field == "prepared":
            return [None, *(proof[2:] for proof in self._proofs("Prepare", "PrePrepare"))]
        if kind is Decided and field == "votes":
            return self._proofs("Commit")
        if field == "value":
            return [(pid, what) for pid in self.values.get("pid", ()) for what in (Decision.LOCK, Decision.ABORT)]
        if kind is Order:
            return self._order(field)
        if kind is Setup and field in ("incoming", "outgoing"):
            return self.locks(field)
        if kind is Share and field == "order":
            return [None, *self.values.get("order", ()), *self.values.get("Order", ())]
        if kind is NewerState:
            return [None, *self.values.get("announcement", ()), *self.values.get("Announce", ())]
        return list(self.values.get(field, ()))

    def _invented(self, lock: Lock) -> Proof:
        """A proof that shows the lock in a state of its own."""
        return Proof(1, lock, 0, (lock_digest(lock, self.world.keys),))

    def concerns(self, field: str, value: object, about: Lock | Order) -> bool:
        """Whether a field with this value goes together with a message about this lock or this order."""
        if isinstance(about, Order):
            pid = about.pid(self.world.keys)
            known = {"pid": pid, "order": about, "cid": value if value in about.cids else None}
            if field == "certificate":
                return value.statement[3] == pid and len(value.votes) >= self.world.topology.quorum
            return value[0] == pid if field == "value" else known.get(field, value) == value
        if field in ("proof", "pending"):
            return value is None or value.lock == about
        if field == "key":
            return self.world.locks.opens(about.condition, value)
        known = {"lock": about, "pid": about.pid, "cid": self.places.get(about)}
        if field == "about":
            return value == lock_digest(about, self.world.keys)
        return known.get(field, value) == value

    def _order(self, field: str) -> list[object]:
        """Values of an order's fields: any one or two channels, either side paying, amounts small, usual or all."""
        topology = self.world.topology
        cids, most = range(len(topology.channels)), max(max(channel[2:]) for channel in topology.channels)
        amounts = dict.fromkeys(amount for known in self.values.get("amounts", ()) for amount in known)
        amounts.update(dict.fromkeys((1, most)))
        fields = {
            "cids": [path for size in (1, 2) for path in product(cids, repeat=size)],
            "payers": [sides for size in (1, 2) for sides in product((0, 1), repeat=size)],
            "amounts": [given for size in (1, 2) for given in product(amounts, repeat=size)],
            "nonce": [1, 2],
        }
        parties = sorted({name for channel in topology.channels for name in channel[:2]})
        return fields.get(field, parties)

    def state_signature(self, who: str, statement: tuple) -> object:
        """The signature of a party on a state, if the adversary has it or can make it; else none."""
        if who in self.faulty:
            return self.world.keys.sign(who, statement)
        return self.signatures.get(statement, {}).get(who)

    def _proofs(self, *kinds: str) -> list[tuple]:
        """(channel, slot, view, value, votes): all signatures known or made on what members prepared or committed."""
        found: dict[tuple, dict[str, object]] = {}
        for statement, known in self.signatures.items():
            if statement[0] in kinds:
                found.setdefault(statement[1:], {}).update(known)
        own = {int(name[1 : name.index(".")]) - 1 for name in self.faulty if "." in name}
        for cid, slot, view, value in product(sorted(own), (0, 1), (0, 1), self.domain(Prepare, "value")):
            found.setdefault((cid, slot, view, value), {})
        for (cid, slot, view, value), votes in found.items():
            members = self.world.committee(cid).members
            for name in self.faulty:
                if name in members:
                    leads = members[(slot + view) % len(members)] == name
                    kind = "PrePrepare" if leads and "PrePrepare" in kinds else kinds[0]
                    votes[name] = self.world.keys.sign(name, (kind, cid, slot, view, value))
        return [(*about, tuple(sorted(votes.items()))) for about, votes in found.items()]

    def _requests(self) -> list[tuple]:
        """Quorums of requests for one view, out of those seen and those that faulty nodes can make."""
        found: dict[tuple, dict[str, object]] = {}
        for statement, known in self.signatures.items():
            if statement[0] == "ViewChange":
                _, cid, slot, view, prepared = statement
                for name, signature in known.items():
                    found.setdefault((cid, slot, view), {})[name] = ViewChange(cid, slot, view, prepared, signature)
        own = {int(name[1 : name.index(".")]) - 1 for name in self.faulty if "." in name}
        for about in product(sorted(own), (0, 1), (1, 2)):
            found.setdefault(about, {})
        quorums = []
        for (cid, slot, view), requests in found.items():
            committee = self.world.committee(cid)
            for name in self.faulty:
                if name in committee.members:
                    signature = self.world.keys.sign(name, ("ViewChange", cid, slot, view, None))
                    requests[name] = ViewChange(cid, slot, view, None, signature)
            size = min(committee.quorum, len(requests))
            quorums += [tuple(chosen) for chosen in combinations(sorted(requests.items()), size)]
        return quorums


def form(knowledge: Knowledge, sender: Node, kind: type, index: int) -> object | None:
    """The message of a class that the number `index` stands for, or None if the adversary cannot form it.

    A certificate or the requests for a view say which payment they are about, and the message is about the same. By its
    remainder by 4 a number counts through all combinations of known values, the first field fastest (0); messages of
    this class that were seen, with one field changed (1); messages all of whose fields are about one lock or one order
    (2); and the last of these with nonsense in one place (3). Larger numbers begin anew.
    """
    index, way = divmod(index, 4)
    if way == 3:
        index, junk = divmod(index, len(JUNK))
        index, place = divmod(index, 16)
        message = form(knowledge, sender, kind, 4 * (index // 2) + 1 + index % 2)
        return None if message is None else _signed(knowledge, sender, spoilt(message, place, JUNK[junk]))
    if kind is Propose or kind is Cosign:
        made = proposals(knowledge, sender) if kind is Propose else cosignatures(knowledge, sender)
        return made[index % len(made)] if made else None
    fields = [field for field in kind._fields if field != "signature"]
    seen = list(knowledge.messages.get(kind, ()))
    values: Fields = {}
    about = None
    if seen and way == 1:
        index, choice = divmod(index, len(seen))
        values = {field: getattr(seen[choice], field) for field in fields}
        index, choice = divmod(index, len(fields))
        fields = [fields[choice]]
    elif way == 2:
        known = knowledge.values.get("lock" if hasattr(knowledge.world, "locks") else "Order", ())
        subjects = [one for one in known if one is not None]
        if subjects:
            index, choice = divmod(index, len(subjects))
            about = subjects[choice]
    for field in fields:
        domain = knowledge.domain(kind, field)
        if about is not None:
            domain = [value for value in domain if knowledge.concerns(field, value, about)] or domain
        if not domain:
            return None
        index, choice = divmod(index, len(domain))
        values[field] = domain[choice]
    keys = knowledge.world.keys
    if kind is CarriedCertificate and values["certificate"] is not None:
        statement = values["certificate"].statement
        if statement[0] != "share":
            return None
        values.update(what=statement[1], cid=statement[2], pid=statement[3])
    elif kind is NewView:
        _, asked = values["requests"][0]
        values.update(cid=asked.cid, slot=asked.slot, view=asked.view)
    elif kind is Decided and "votes" in fields:
        cid, slot, view, value, votes = values["votes"]
        values.update(cid=cid, slot=slot, view=view, value=value, votes=votes)
    if kind is Claim or kind is Announce:
        seq, root = (values["seq"], values["root"]) if kind is Announce else _shown(knowledge, values)
        parties = knowledge.world.topology.channels[values["cid"]][:2]
        statement = STATE_PROOF, values["cid"], seq, root
        left, right = (knowledge.state_signature(who, statement) for who in parties)
        values.update(left=left, right=right)
    elif kind is RefundRequest:
        seq, root = _shown(knowledge, values)
        values["signature"] = keys.sign(sender.name, (STATE_PROOF, values["cid"], seq, root))
    elif kind in SIGNED:
        if kind is Order:  # the nonce stands for the digest in mock mode, so that no two orders may share one
            body = repr([values[field] for field in kind._fields[:-1]])
            values["nonce"] = crc32(body.encode())
        statement = SIGNED[kind](values)
        own = sender.name
        if kind is Order and values["sender"] != own and values["sender"] in knowledge.faulty:
            own = values["sender"]
        values["signature"] = keys.sign(own, statement)
        if kind is Order:
            if values["sender"] not in knowledge.faulty:
                values["signature"] = knowledge.signatures.get(statement, {}).get(values["sender"])
            if not len(values["cids"]) == len(values["payers"]) == len(values["amounts"]):
                return None  # nobody can read it
    return kind(**values)


def places_of(message: object) -> list[tuple[int, ...]]:
    """Where in a message a value stands, as paths of positions."""
    found: list[tuple[int, ...]] = []
    for k, part in enumerate(message):
        found.append((k,))
        if isinstance(part, tuple):
            found += [(k, *rest) for rest in places_of(part)]
    return found


def spoilt(message: object, place: int, value: object) -> object:
    """A message with another value in one of its places."""
    places = places_of(message)
    return _put(message, places[place % len(places)], value) if places else message


def _put(whole: tuple, path: tuple[int, ...], value: object) -> tuple:
    first, *rest = path
    part = _put(whole[first], tuple(rest), value) if rest else value
    parts = (*whole[:first], part, *whole[first + 1 :])
    return type(whole)(*parts) if hasattr(whole, "_fields") else parts


def _signed(knowledge: Knowledge, sender: Node, message: object) -> object:
    """A message that was changed, with the faulty sender's signature on what it says now, if it can be made."""
    if type(message) not in SIGNED or message.signature is None:
        return message
    try:
        statement = SIGNED[type(message)](message._asdict())
    except TypeError:
        return message
    return message._replace(signature=knowledge.world.keys.sign(sender.name, statement))


def variants(knowledge: Knowledge, kind: type, field: str, old: object) -> list[object]:
    """What else might stand where this value does, in a message of this class."""
    if isinstance(old, Lock):
        more = [old._replace(amount=old.amount + 5), old._replace(expiry=old.expiry + 100.0), old._replace(amount=1)]
        return [*more, *(lock for lock in knowledge.values["lock"] if lock is not None and lock != old)]
    known = [value for value in knowledge.domain(kind, field) if value != old]
    return [*known, *((old + 1, old + 100) if isinstance(old, int | float) else ())]


def altered(knowledge: Knowledge, sender: Node, message: object, field: str, which: int, how: int) -> object:
    """A message in which one value of a field is another one throughout, signed by its faulty sender.

    The value is that of the message; of a field of its parts, as "lock" is, it is number `which` of those known, in the
    order in which they became known, so that all messages are altered alike. how: of its `variants`. Numbers that are
    too large begin anew. Of a signature there is one variant: the sender's on something else.
    """
    if field == "signature":
        return message._replace(signature=knowledge.world.keys.sign(sender.name, ("nothing",)))
    known = [value for value in knowledge.values.get(field, ()) if value is not None or field in OFTEN_NONE]
    if field not in message._fields and not known:
        return message
    old = getattr(message, field) if field in message._fields else known[which % len(known)]
    others = variants(knowledge, type(message), field, old)
    if not others:
        return message
    new = _exchanged(message, field, old, others[how % len(others)])
    return message if new == message else _signed(knowledge, sender, new)


def _exchanged(value: object, field: str, old: object, new: object) -> object:
    if field == "lock" and isinstance(value, Lock):
        return new if value == old else value
    if not isinstance(value, tuple):
        return value
    if not hasattr(value, "_fields"):
        return tuple(_exchanged(part, field, old, new) for part in value)
    parts = {}
    for name, part in zip(value._fields, value, strict=True):
        if name == "signature":
            parts[name] = part
        else:
            same = name == field and type(part) is type(old) and part == old
            parts[name] = new if same else _exchanged(part, field, old, new)
    return type(value)(**parts)


def _shown(knowledge: Knowledge, values: Fields) -> tuple[int, object]:
    proof = values["proof"]
    return proof.seq, proof.root(values["cid"], knowledge.world.keys)


def proposals(knowledge: Knowledge, sender: Node) -> list[Propose]:
    """What a faulty party can propose in its channels: every change of its state, with every decision known."""
    found, keys = [], knowledge.world.keys
    for cid, end in getattr(sender, "ends", {}).items():
        decided = {}
        for certificate in knowledge.certificates():
            for lock in end.state.locks:
                what = certificate.statement[3]
                if certificate.statement[:3] == ("vote", cid, lock_digest(lock, keys)):
                    own = certificate._replace(votes=())
                    decided[lock.pid, what] = [
                        Resolved(proof, key) for key in knowledge.known_keys() for proof in (certificate, own)
                    ]
        folds: list[tuple] = [((), ())]
        folds += [(((pid, what),), (one,)) for (pid, what), ways in decided.items() for one in ways]
        changes = [Change("pay", amount=1)]
        held = [lock for lock in knowledge.values.get("lock", ()) if lock is not None]
        locks = [lock for at, lock in filter(None, knowledge.locks("incoming")) if at == cid]
        changes += [Change("lock", lock=lock) for lock in dict.fromkeys([*held, *locks])]
        for lock in end.state.locks:
            changes += [Change("open", pid=lock.pid, key=key) for key in knowledge.known_keys()]
            changes.append(Change("fail", pid=lock.pid))
        for change in changes:
            for fold, resolved in folds:
                full = change._replace(resolved=resolved)
                try:
                    state = follow(end.state, end.side, full, 1, fold)
                except Refused:
                    continue
                commitment = commit(state, keys)
                signature = keys.sign(sender.name, (STATE_PROOF, cid, state.seq, commitment.root))
                found.append((end, state, commitment, Propose(cid, state.seq, full, 1, signature)))
    made = []
    for end, state, commitment, message in found:
        key = end.cid, state.seq, commitment.root
        knowledge.states.setdefault(key, (state, commitment))
        made.append(message)
    return made


def adopt(knowledge: Knowledge, sender: Node, message: object) -> None:
    """After a forged proposal the party goes on as if it were its own, so that its honest part can use the answer.

    An order that the world did not make is no payment of those that are judged.
    """
    if isinstance(message, Order):
        sender.world._payments.setdefault(message.pid(sender.world.keys))
    if isinstance(message, Propose):
        end = sender.ends[message.cid]
        if end.pending is None:
            _, (_, cid, seq, root) = message.signature
            locks = {lock_digest(lock, sender.keys): lock for lock in end.state.locks}
            gone = [(locks[resolved.about], resolved.decision) for resolved in message.change.resolved]
            end.pending = *knowledge.states[cid, seq, root], message.signature, message.change, gone


def cosignatures(knowledge: Knowledge, sender: Node) -> list[Cosign]:
    """A faulty party's signatures on every state that it knows of its channels."""
    keys = knowledge.world.keys
    return [
        Cosign(cid, seq, keys.sign(sender.name, (STATE_PROOF, cid, seq, root)))
        for cid, seq, root in knowledge.states
        if cid in getattr(sender, "ends", {})
    ]
