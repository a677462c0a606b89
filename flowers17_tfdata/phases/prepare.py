"""The phase `prepare`."""

from __future__ import annotations

from flowers17_tfdata import files, terminal, timings
from flowers17_tfdata.data import audit, class_folders
from flowers17_tfdata.errors import UserError, counted
from flowers17_tfdata.session import Session


def prepare(session: Session) -> None:
    """Audits the data set; writes `audit.json` and `splits.csv`.

    Raises:
      UserError: an image in a split can't be decoded.
    """
    source = session.source
    with timings.measure(session.output, "audit"):
        with terminal.ScanProgress(sum(source.split_sizes.values())) as bar:
            scan = source.scan(bar.scanned)
        result = audit.audit(source, scan)
    files.write_json(session.output / "audit.json", result)
    class_folders.write_splits(
        session.output / "splits.csv", source.class_names, scan
    )
    terminal.show_audit(result)
    in_a_split = [file for file in result["undecodable"] if file["split"]]
    if in_a_split:
        first = in_a_split[0]
        raise UserError(
            f"{source.name}: {counted(len(in_a_split), 'file')} can't be "
            "decoded, first "
            f"{first['id']} in split {first['split']}; audit.json lists them"
        )


def is_prepared(session: Session) -> bool:
    """Whether the workdir's audit shows that this data set can be used."""
    path = session.workdir / "audit.json"
    if not path.exists():
        return False
    result = files.read_json(path)
    same = result["dataset"] == session.source.name
    return same and not any(file["split"] for file in result["undecodable"])
