"""``python -m effdl.cli``: the command line without its console script."""

from effdl.cli.main import main

main()
