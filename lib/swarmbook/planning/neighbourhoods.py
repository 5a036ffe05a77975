"""Planning for large swarms: simulated annealing of a few independent parts of a plan at a time (SkipPipe).

- a *part* is a set of microbatches, and of all nodes that they visit, which no other microbatch visits. A part takes
  what it takes, whatever the others do, so that a change inside it costs the time of its own operations alone
- `neighbourhood_search` begins with one path a data node, so that there are many parts. Then it takes the part that
  ends last, with a few others, and anneals their paths and orders together as `swarmbook.planning.annealing` does. It
  keeps what is no longer than before

Serves: SkipPipe's figure of larger swarms.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from swarmbook.errors import PlanError
from swarmbook.planning import jobshop
from swarmbook.planning.annealing import COLD, HOT, PATH_MOVES, WEIGHT
from swarmbook.planning.encoding import (
    SearchResult,
    makespan_of,
    plan_of,
    shop_of,
    state_of_plan,
    dispatched,
)
from swarmbook.planning.pipeline import DISPATCH_RULES, TICK, Pipeline, Plan
from swarmbook.planning.slot_paths import short_paths, data_node_paths
from swarmbook.planning.encoding import part_of, put_back

def parts(shop, state) -> np.ndarray:
    """The part of each microbatch [J], by number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    J, N = len(shop.start), len(shop.stage)
    W = len(state.node) // J
    rows = np.repeat(np.arange(J), W)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, J + state.node)), shape=(J + N, J + N))
    _, label = connected_components(graph, directed=False)
    return label[:J]

def neighbourhood_search(pipeline, rng, moves=None, seconds=None, start=None, size=24, each=20000, hot=HOT, verbose=False, restarts=5):
    shop = shop_of(pipeline)
    begun = time.thread_time(); started=time.monotonic()
    P = pipeline.visits; W = 2*P+1
    history = []
    if start is None:
        paths = Plan.of_slots(pipeline, data_node_paths(pipeline, rng) or short_paths(pipeline, rng)).paths
        start, _ = min((dispatched(pipeline, paths, rule) for rule in DISPATCH_RULES), key=lambda f: f[1])
    state = state_of_plan(pipeline, start)
    least = makespan_of(state)
    history.append((0, time.thread_time()-begun, TICK*least))
    label = parts(shop, state)
    J=len(shop.start)
    ends = lambda st: (st.begin+st.duration).reshape(-1,W)[:,-1]
    relays = shop.stage > 0
    done=0
    fails=0
    while True:
        e = ends(state)
        worst = label[np.argmax(e)]
        count = np.bincount(label, minlength=label.max()+1)
        chosen=[worst]; total=count[worst]
        numbers=np.unique(label)
        for other in rng.permutation(numbers):
            if other!=worst and total+count[other] <= size:
                chosen.append(other); total+=count[other]
        js=np.flatnonzero(np.isin(label,chosen))
        used = np.zeros(len(shop.stage),bool); used[state.node.reshape(-1,W)[js]]=True
        nodes=np.flatnonzero(used | (relays & (state.chosen==0)))
        sub_shop, sub = part_of(shop, state, js, nodes)
        before = makespan_of(sub); tot=ends(sub).sum()
        best = jobshop.clone(sub)
        relay=np.flatnonzero(sub_shop.stage>0)
        spare = relay if sub.chosen[relay].sum() < pipeline.capacity*len(relay) else relay[:0]
        h=hot*before
        after = jobshop.anneal(sub_shop, sub, best, spare, each, h, COLD*before, WEIGHT, PATH_MOVES, rng)
        done+=each
        makespan_of(best)
        if after < before or (after==before and ends(best).sum()<=tot):
            fails=0
            put_back(best, state, js, nodes)
            label=parts(shop,state)
            now=int(ends(state).max())
            if now<least:
                least=now; history.append((done,time.thread_time()-begun,TICK*least))
        else: fails+=1
        if verbose and (done//each)%50==0: print(done//each, 'least',TICK*least,'parts',len(np.unique(label)),'last sub',len(js),len(nodes),TICK*before,TICK*after,round(time.thread_time()-begun,2),flush=True)
        if (seconds is not None and time.thread_time()-begun>=seconds) or (moves is not None and done>=moves):
            break
    return SearchResult(plan_of(pipeline,state), TICK*least, tuple(history), done, time.thread_time()-begun)
