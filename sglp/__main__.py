"""``python -m sglp``: the command line."""

from sglp.commands.app import main

main()
