"""Planning of pipelines that skip stages (SkipPipe).

Plans say where stages run, which relays microbatches go through and in what order nodes work. Beside the planners stand
what a plan takes (`replay`) and how little any plan could take (`bounds`).
"""
