"""The pages' promises, run as they stand."""
