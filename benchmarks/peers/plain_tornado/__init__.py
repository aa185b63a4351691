"""Tornado as its documentation shows it: a RequestHandler, and a pool of connections."""
