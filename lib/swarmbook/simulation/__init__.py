"""Simulations and closed forms of time and of drift, without training.

They say how long messages, iterations, rollbacks and outer steps take, and how far replicas drift apart.
"""
