"""A Kubernetes by kind: nodes are containers of podman, from a node image of our own, since no registry is needed."""
