"""`python -m bushcraft.cli`, where the command is not on the path."""

from bushcraft.cli import command

command()
