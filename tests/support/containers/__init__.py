"""A container engine for the tests: podman in namespaces of its own, and docker-compose."""
