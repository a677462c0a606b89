"""`python -m flowers17_tfdata`: the command line."""

from flowers17_tfdata import cli

if __name__ == "__main__":
    cli.run()
