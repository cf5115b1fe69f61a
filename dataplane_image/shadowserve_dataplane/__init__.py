"""ShadowServe's data plane: restore KV caches beside the engine.

Importing this package imports nothing else: the connector half of it is copied into stock engine images.
"""

__version__ = "0.1.0"
