"""Helpers for the fault tests: a load with its ledger, a judge, a relay, wrong servers."""
