"""Tests without a server: values, codecs, parsers, certificates, the order of updates."""
