"""A real Kubernetes on one machine: nodes are network namespaces, or kind."""
