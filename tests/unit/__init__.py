"""What needs no server: values, codecs, parsers, certificates, the order of updates."""
