"""The model card: what was exported, of what, how good it is, how to call it.

Markdown with the front matter of Hugging Face's hub
(https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.models import classifier
from flowers17_tfdata.phases.export import usage
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

FILE_NAME = "README.md"

_SAME_ACCURACY = 0.01

# What the flags of a run say of its training; the others say where it ran.
_TRAINING_FLAGS = (
    *("backbone", "weights", "image_size", "head_units", "dropout"),
    *("unfreeze_from", "global_batch_size", "feature_views"),
    *("transfer_optimizer", "transfer_epochs", "transfer_learning_rate"),
    *("finetune_epochs", "finetune_optimizer", "finetune_learning_rate"),
    *("finetune_lowest_rate", "refit", "schedule", "weight_decay"),
    *("label_smoothing", "augmentation", "train_scale", "rotation", "shift"),
    *("zoom", "crop", "horizontal_flip", "precision", "seed"),
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Attributes:
      model_file: name of the `.keras` file.
      trained_splits: that it was trained on.
      backbone: name of it.
      dataset: full name of the data set.
      class_names: in the order of the class ids.
      split_sizes: `{split: images}`.
      run: contents of the workdir's config.json; {}: there is none.
      audit: of its audit.json for this data set; {}: there is none.
      evaluation: of its evaluation.json for this model; {}: there is none.
      report: of the export's parity.json.
    """

    model_file: str
    trained_splits: tuple[str, ...]
    backbone: str
    dataset: str
    class_names: tuple[str, ...]
    split_sizes: dict[str, int]
    run: dict[str, Any]
    audit: dict[str, Any]
    evaluation: dict[str, Any]
    report: dict[str, Any]

    @classmethod
    def read(
        cls, session: Session, trained: TrainedModel, report: dict[str, Any]
    ) -> Facts:
        """Collects them from the session and its workdir.

        Raises:
          UserError: a file of the workdir is damaged.
        """
        source = session.source

        def recorded(name):
            path = session.workdir / name
            return files.read_json(path) if path.exists() else {}

        audit, evaluation = recorded("audit.json"), recorded("evaluation.json")
        own = trained.was_trained_in(session.workdir)
        # Left over from other data.
        if audit.get("dataset") != source.name:
            audit = {}
        if not _is_of(evaluation, trained.path.name, report):
            evaluation = {}
        return cls(
            trained.path.name,
            trained.trained_splits,
            # Not the flag: --model may name another.
            classifier.get_backbone(trained.model).name,
            source.name,
            source.class_names,
            dict(source.split_sizes),
            recorded("config.json") if own else {},
            audit,
            evaluation,
            report,
        )


def _is_of(
    evaluation: dict[str, Any], model_file: str, report: dict[str, Any]
) -> bool:
    """Whether an evaluation is of the exported model, as far as can be told."""
    if (
        pathlib.Path(evaluation.get("model", "")).name != model_file
        or evaluation["dataset"] != report["dataset"]
    ):
        return False
    if evaluation.get("views", 1) > 1:
        # What is exported looks at an image once: not to be compared.
        return True
    trained = report["formats"][0]["accuracy"]
    # The same model on the same images, but for other hardware's rounding.
    return (
        evaluation["split"] != report["split"]
        or abs(evaluation["accuracy"] - trained) < _SAME_ACCURACY
    )


def make_card(facts: Facts) -> str:
    """Returns the card, Markdown."""
    sections = [
        _front_matter(facts),
        _summary(facts),
        _data(facts),
        _metrics(facts),
        _formats(facts),
        usage.make_section(
            facts.class_names,
            facts.report["image_size"],
            [row["file"] for row in facts.report["formats"]],
        ),
        _training(facts),
        _LIMITS,
        _LICENCE,
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _front_matter(facts: Facts) -> str:
    """Returns the YAML block; its values are JSON, which YAML includes."""
    values: dict[str, Any] = {
        # The weights' owners decide; see the section on licences.
        "license": "other",
        "license_name": "see-licence-section",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "tensorflow", "tflite"],
        "datasets": [facts.dataset.split("/")[0]],
        "metrics": ["accuracy"],
    }
    if facts.evaluation:
        values["model-index"] = [_index_entry(facts)]
    lines = [f"{k}: {json.dumps(v)}" for k, v in values.items()]
    return "\n".join(["---", *lines, "---"])


def _index_entry(facts: Facts) -> dict[str, Any]:
    split = facts.evaluation["split"]
    accuracy = facts.evaluation["accuracy"]
    if facts.evaluation.get("views", 1) > 1:
        # Not what the exported formats reach.
        split = facts.report["split"]
        accuracy = facts.report["formats"][0]["accuracy"]
    return {
        "name": f"{facts.backbone} on {facts.dataset}",
        "results": [
            {
                "task": {"type": "image-classification"},
                "dataset": {
                    "name": facts.dataset,
                    "type": facts.dataset.split("/")[0],
                    "split": split,
                },
                "metrics": [
                    {
                        "type": "accuracy",
                        "value": round(accuracy, 4),
                    }
                ],
            }
        ],
    }


def _summary(facts: Facts) -> str:
    size = facts.report["image_size"]
    names = ", ".join(facts.class_names[:20])
    if len(facts.class_names) > 20:
        names += ", ... (all in labels.txt)"
    return f"""
# {facts.backbone} on {facts.dataset}

Names the class of a photograph, one of {len(facts.class_names)}: {names}.
An image of any size is scaled to {size} x {size} pixels (its aspect ratio is
not kept). Exported by {facts.report["written_by"]} from `{facts.model_file}`,
all in float32 but for the formats that say otherwise."""


def _origin(dataset: str) -> str:
    if dataset.startswith("folder:"):
        return (
            f"`{dataset}`: class folders; the digits stand for the images, "
            "their classes and their splits."
        )
    return f"`{dataset}` of TensorFlow Datasets."


def _data(facts: Facts) -> str:
    rows = [[split, count] for split, count in facts.split_sizes.items()]
    lines = [
        "## Data",
        _origin(facts.dataset),
        table(["split", "images"], rows),
        _leakage(facts.audit),
    ]
    return "\n\n".join(lines)


def _leakage(audit: dict[str, Any]) -> str:
    if not audit:
        return (
            "**Leakage: not audited yet:** run `python main.py "
            "--phase=prepare` with this workdir, then export again."
        )
    found = audit["near_duplicates"]
    text = (
        f"Leakage: the audit found {found['num_pairs']} pairs of "
        f"near-identical images in {found['num_groups']} groups; "
        f"{found['num_pairs_across_splits']} of these pairs lie across splits."
    )
    if found["num_pairs_across_splits"]:
        text += (
            " The model has seen near copies of some of the images that it is "
            "measured on: its accuracy on new photographs is likely lower."
        )
    return text


def _metrics(facts: Facts) -> str:
    evaluation = facts.evaluation
    if not evaluation:
        return (
            "## Metrics\n\n**Not evaluated yet:** run `python main.py "
            "--phase=evaluate` with this workdir, then export again."
        )
    low, high = evaluation["accuracy_interval"]
    scores = ("precision", "recall", "f1")
    rows = [
        [name, *(f"{s[k]:.3f}" for k in scores), s["support"]]
        for name, s in evaluation["per_class"].items()
    ]
    return "\n\n".join(
        [
            "## Metrics",
            f"On the {evaluation['split']} split, "
            f"{evaluation['num_examples']} images, in the training's "
            f"precision: accuracy **{evaluation['accuracy']:.4f}** (95 % "
            f"interval {low:.4f} to {high:.4f}), top-5 accuracy "
            f"{evaluation['top_5_accuracy']:.4f}, cross-entropy "
            f"{evaluation['loss']:.4f}.{_views_note(evaluation)}",
            table(["class", "precision", "recall", "F1", "images"], rows),
        ]
    )


def _views_note(evaluation: dict[str, Any]) -> str:
    views = evaluation.get("views", 1)
    if views == 1:
        return ""
    return (
        f" This is the mean over {views} views of each image; the files here "
        "look at an image once, with the accuracy under Formats."
    )


def _formats(facts: Facts) -> str:
    report = facts.report
    rows = []
    for row in report["formats"]:
        rate = row["images_per_sec"]
        latency = row["latency_ms"]
        rows.append(
            [
                row["format"],
                f"`{row['file']}`",
                f"{row['megabytes']:.1f}",
                f"{row['accuracy']:.4f}",
                f"{row['max_difference']:.1e}",
                f"{100 * row['top_1_agreement']:.1f}",
                "" if latency is None else f"{latency:.1f}",
                "" if rate is None else f"{rate:.1f}",
            ]
        )
    columns = ["format", "file", "MB", "accuracy", "largest difference"]
    columns += ["same class, %", "ms an image", "images/s at 32"]
    return "\n\n".join(
        [
            "## Formats",
            "`trained` is the model as it was trained, in "
            f"{report['trained_precision']}; all others compute in float32 or "
            f"as their name says. Each was run on the {report['split']} split "
            f"({report['num_examples']} images) and compared with the Keras "
            "model in float32: the largest difference of a probability, and "
            "the share of images with the same likeliest class. Times: median, "
            f"{report['threads']} CPU threads of the machine that exported.",
            table(columns, rows),
        ]
    )


def _training(facts: Facts) -> str:
    flags = facts.run.get("flags", {})
    # Paths of the training's machine say nothing elsewhere.
    rows = [
        [f"`{k}`", pathlib.Path(str(flags[k])).name]
        for k in _TRAINING_FLAGS
        if k in flags
    ]
    if not rows:
        return "## Training\n\nThis workdir holds no record of it."
    versions = facts.run.get("versions", {})
    return "\n\n".join(
        [
            "## Training",
            "A head on the frozen backbone first (transfer), then the upper "
            "backbone too (finetune), unless --finetune_epochs=0; of the two "
            "the better one by validation is kept, and with --refit trained "
            "once more, on validation too. This model was trained on "
            f"{' and '.join(facts.trained_splits)}.",
            table(["flag", "value"], rows),
            "Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()),
        ]
    )


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Returns a Markdown table; numbers are not aligned."""
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |"
        for row in cells
    )


_LIMITS = """
## Limits

- It knows its classes and nothing else: of anything it names one of them, with
  probabilities that sum to 1. A high one doesn't mean that the image shows any
  class at all.
- It was measured on images from where its training images come from. Other
  cameras, seasons, regions, framings: expect less, and measure.
- Probabilities are softmax outputs, not calibrated beyond what label smoothing
  does; choose thresholds on data of your own.
- Not for deciding what may be eaten or touched."""

_LICENCE = """
## Licence

The program that trained and exported it is under Apache-2.0. That says nothing
of the photographs, or of the pretrained weights it may have started from: they
remain under the terms of their owners, which may limit what this model may be
used for."""
