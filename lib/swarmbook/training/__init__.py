"""Training runs in one process: the model, its optimizers, and a pack of runs that share one set of stacked tensors.

`trainer.train` is where to begin reading; `swarmbook.distributed` trains one run on many processes with the same parts.
"""
