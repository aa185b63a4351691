"""The commands of tornado-status beside serving: each in a module, imported only when it runs."""
