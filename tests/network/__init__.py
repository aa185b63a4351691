"""Several hosts, in network namespaces."""
