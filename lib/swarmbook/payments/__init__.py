"""Payments over several channels, with committees instead of a blockchain (SyncPCN, PSyncPCN; arXiv 2207.11615).

Only the abstract of the paper is known to us; what is not in it is our reconstruction, and says so.

- `simulation`: messages and clocks, with a trace; `signatures`, `encoding`, `locks`: what is signed, and locked
- `channel`, `updates`: a channel's states, and how two parties and a committee agree on the next
- `world`, `syncpcn`, `psyncpcn` (with `agreement`), `lightning`: the protocols, over any topology
- `adversary`, `requirements`: what faulty parties and members do, and what must hold nevertheless
- `search`: the impossibility on a finite class; `costs`: closed forms; `wan`: delays of the world;
  `privacy`: what can be linked; `load`: payments over a large network
"""
