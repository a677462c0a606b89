"""The flags of the training stages."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind

STAGES = ("transfer", "finetune", "refit")
OPTIMIZERS = ("sgd", "adam", "adamw")
# Finds the head's optimum on cached features, without steps.
SOLVER = "lbfgs"


@dataclasses.dataclass(frozen=True)
class StageOptions:
    """How a stage that trains in steps does so.

    Attributes:
      method: `transfer` or `finetune`.
      epochs: number of epochs.
      optimizer: one of `OPTIMIZERS`.
      learning_rate: peak learning rate.
    """

    method: str
    epochs: int
    optimizer: str
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """The epochs, optimizers and losses of the training stages."""

    global_batch_size: int = Kind.RUN.option(
        32,
        "Images per step over all replicas.",
        common=True,
        bounds=(1, None),
    )
    transfer_optimizer: str = Kind.TRAINING.option(
        SOLVER,
        "lbfgs solves the linear head on cached features, with a weight decay "
        "by cross-validation in train; the others train it in steps.",
        stage="transfer",
        choices=(SOLVER, *OPTIMIZERS),
    )
    transfer_epochs: int = Kind.TRAINING.option(
        30,
        "Epochs of the transfer stage (lbfgs needs none).",
        stage="transfer",
        common=True,
        bounds=(1, None),
    )
    transfer_learning_rate: float = Kind.TRAINING.option(
        1e-3,
        "Peak learning rate of the transfer stage (lbfgs needs none).",
        stage="transfer",
        above=0,
    )
    finetune_epochs: int = Kind.TRAINING.option(
        8,
        "Epochs of the fine-tune stage (0: train the head alone).",
        stage="finetune",
        common=True,
        bounds=(0, None),
    )
    refit: bool = Kind.RECALLED.option(
        False,
        "At the end, train the better stage once more, on train and validation "
        "together; only test can then measure the model.",
        # It adds a stage, and changes none.
        common=True,
    )
    finetune_optimizer: str = Kind.TRAINING.option(
        "adamw",
        "Optimizer of the fine-tune stage.",
        stage="finetune",
        choices=OPTIMIZERS,
    )
    finetune_learning_rate: float = Kind.TRAINING.option(
        3e-4,
        "Peak learning rate of the fine-tune stage.",
        stage="finetune",
        common=True,
        above=0,
    )
    finetune_lowest_rate: float = Kind.TRAINING.option(
        1.0,
        "Learning rate of the lowest trained layer, as a share of the head's, "
        "rising geometrically in between (1: all equal).",
        stage="finetune",
        above=0,
        bounds=(0, 1),
    )
    schedule: str = Kind.TRAINING.option(
        "cosine",
        "cosine warms up for one epoch, then decays to 0; constant stays.",
        choices=("cosine", "constant"),
    )
    weight_decay: float = Kind.TRAINING.option(
        1e-4,
        "Decoupled weight decay of adamw, not on biases and batch-norm.",
        bounds=(0, None),
    )
    class_weights: str = Kind.TRAINING.option(
        "none",
        "balanced gives every class the same share of the loss.",
        choices=("none", "balanced"),
    )
    label_smoothing: float = Kind.TRAINING.option(
        0.0,
        "Label smoothing of the training loss.",
        bounds=(0, 0.9),
    )

    def stage(self, method: str) -> StageOptions:
        """Returns the options of the method `transfer` or `finetune`."""
        if method == "transfer":
            return StageOptions(
                method,
                self.transfer_epochs,
                self.transfer_optimizer,
                self.transfer_learning_rate,
            )
        return StageOptions(
            method,
            self.finetune_epochs,
            self.finetune_optimizer,
            self.finetune_learning_rate,
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that `--phase=train` runs, in order."""
        runs = (True, self.finetune_epochs > 0, self.refit)
        return tuple(s for s, run in zip(STAGES, runs, strict=True) if run)
