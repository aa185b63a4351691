"""The ceiling: nginx answers 204 to everyone with a certificate, and does nothing else."""
