"""Certificates for tornado_status: a CA, and what it issues to servers, users and announcers.

`authority` is the library and makes everything in memory, `files` puts it on disk, `development`
says what is in a development set, `revocation` what is in the next CRL, `cli` is the command line.
Nothing happens at import.
"""
