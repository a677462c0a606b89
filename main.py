"""Entry point: `python main.py --phase=train --workdir=DIR`."""

from flowers17_tfdata import cli

if __name__ == "__main__":
    cli.run()
