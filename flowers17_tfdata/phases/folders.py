"""The phase `folders`."""

from __future__ import annotations

from flowers17_tfdata import terminal
from flowers17_tfdata.data import class_folders
from flowers17_tfdata.session import Session


def folders(session: Session) -> None:
    """Writes the splits as class folders."""
    if not session.workers.is_chief:
        return
    path = session.config.folders.folders_dir or session.output / "folders"
    if class_folders.write(session.source, path):
        terminal.say(f"class folders written to {path}")
    else:
        terminal.say(f"class folders are in {path} already")
