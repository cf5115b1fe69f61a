"""The control-plane sidecar: messages between the engine, the store and a data plane."""
