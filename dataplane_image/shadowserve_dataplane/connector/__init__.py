"""The vLLM connector. Pure Python; with `chunks` and the package root it is all that an engine image needs."""
