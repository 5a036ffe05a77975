"""One run on many processes: the cells of a run shared out over a mesh of ranks that send each other messages.

Start it with `torchrun -m swarmbook.distributed`. Losses are those of `swarmbook.training` in one process, to rounding.
"""
