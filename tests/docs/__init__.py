"""What the pages promise, run as it stands."""
