"""The commands of tornado-status: a module each, with its arguments and its `run`.

Importing one loads neither Tornado nor a database driver: `run` does. Therefore `--help` is fast,
and a wrong setting is reported at once.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2  # a wrong command line, configuration or start-up condition
