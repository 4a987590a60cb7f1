"""Run the command line as ``python -m ivimbayes``."""

from ivimbayes.cli import main

main()
