"""The command line: ``sglp compress``, ``sglp inspect`` and ``sglp export``."""
