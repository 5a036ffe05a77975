"""Steps of small models on CUDA, whose kernels take less time than launching them one by one.

Serves: runs on a GPU.
"""

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

AFTER = 3  # calls with one key, by which all is compiled, planned and allocated that is so once


class GraphedCall:
    """Calls a function of tokens. After `AFTER` calls with one key it records the kernels in a CUDA graph, and launches
    that.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._key: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, key: Hashable, work: Callable[[Tensor], Tensor], tokens: Tensor, kept: Iterable) -> Tensor:
        """What `work(tokens)` gives. `work` must launch the same kernels on the same memory for the same key, and not
        wait for the device.

        kept: what holds the memory that the kernels read, as of the call that is recorded; it is held as long as the
        graph.
        """
        if key != self._key:
            self._key, self._calls, self._graph = key, 0, None
        self._calls += 1
        if self._calls <= AFTER:
            return work(tokens)
        with torch.cuda.device(self.device):
            if self._graph is None:
                self._tokens, self._kept, graph = tokens.clone(), list(kept), torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._result = work(self._tokens)
                self._graph = graph
            self._tokens.copy_(tokens)
            self._graph.replay()
        return self._result.clone()
