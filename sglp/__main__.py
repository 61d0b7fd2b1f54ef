"""``python -m sglp``: the command line."""

from sglp.command import main

main()
