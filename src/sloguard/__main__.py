"""`python -m sloguard` is `sloguard`."""

from sloguard.cli.app import main

main()
