"""Certificates for tornado_status: a CA, and what it issues to servers, users and announcers.

`authority` is the library and makes everything in memory. `key_files` writes it to disk.
`development` defines the development set, `revocation` the next CRL, `copies` the files that each
machine needs. `cli` is the command line. Nothing happens at import.
"""
