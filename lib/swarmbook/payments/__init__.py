"""Payments over several channels, with committees instead of a blockchain (SyncPCN, PSyncPCN; arXiv 2207.11615).

Only the abstract of the paper is known to us. What is not in it is our reconstruction, and says so.

- `simulation`: messages and clocks, with a trace; `signatures`, `encoding`, `lock_conditions`: what is signed, and
  locked
- `outcomes`: how hops end and what committees decide, spelt once
- `channel`: a channel's states; `channel_update`, `channel_committee`: how two parties and a committee agree on the
  next
- `payment_network`: topologies, payments, and the `World` that every protocol is
- `syncpcn`, `psyncpcn` (with `pbft`), `lightning`: the protocols, over any topology
- `adversary`, `attacks`, `requirements`: what faulty parties and members do, and what must hold nevertheless;
  `model_checking`: a search for violations by an adversary that says whatever it can form; `mutants`: mistakes in the
  protocols that the search must notice
- `griefing`: for how long faulty nodes keep coins locked
- `impossibility`: the theorem on a finite class; `closed_forms`: what payments cost; `wan_latency`: delays of the
  world; `privacy`: what can be linked; `network_load`: payments over a large network; `diagrams`: pictures of runs
- `relay_payments`: a swarm's relays are paid for each microbatch: costs, waiting, what can be lost, load of committees
"""
