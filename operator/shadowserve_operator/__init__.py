"""The operator: observes the cluster, decides with pure functions, acts by server-side apply."""
