"""A Kubernetes of real parts on this machine: every node is a network namespace with a kubelet and a containerd."""
