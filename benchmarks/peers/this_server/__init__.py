"""tornado_status itself."""
