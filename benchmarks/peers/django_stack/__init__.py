"""nginx, gunicorn and Django: the way most Python services are run."""
