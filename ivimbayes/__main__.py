"""Run the command line as ``python -m ivimbayes``."""

from ivimbayes.cli.main import main

main()
