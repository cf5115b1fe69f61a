"""What a pool of inference servers can do, with its uncertainty; the equations are in docs/capacity.md.

`fit(observations, seed)` returns a `Posterior`; it answers `replicas_for(load, objectives, confidence)` and
`predict(load, replicas)`.
"""
