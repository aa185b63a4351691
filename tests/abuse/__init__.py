"""Attackers, each beside an honest population that must not notice them."""
