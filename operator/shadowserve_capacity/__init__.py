"""Capacity of an inference pool: exact parallel Markov chains, and the model that they fit."""
