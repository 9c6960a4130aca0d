"""A real Kubernetes for tests, built from Go modules."""
