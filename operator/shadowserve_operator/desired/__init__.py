"""What should exist: pure functions from resources to Kubernetes objects. No client, no clock, no chance."""
