"""Faults, caused for real under load, and a judge who finds out whether anything was lost."""
