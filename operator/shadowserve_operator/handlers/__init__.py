"""What starts a reconcile, and who answers the API server's questions; the only modules with framework decorators."""
