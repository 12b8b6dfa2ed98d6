"""Runs `freetf` as `python -m freetf_cli`."""

from freetf_cli.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
