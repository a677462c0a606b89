"""Measures the same network in timm (PyTorch), if both are installed.

Neither is a dependency of this package. It runs as timm's users would run it:
eager, with autocast, channels last and a fused AdamW. The step trains
batch-norm, which this package's step has folded away, and augments nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable

from flowers17_tfdata.phases.benchmark import measurement

FORWARD, STEP = "model/timm_forward", "model/timm_step"

# The row of this package to compare each one with.
STAGES = {FORWARD: "model/forward", STEP: "model/step_all"}


@dataclasses.dataclass(frozen=True)
class Work:
    """The work to measure.

    Attributes:
      backbone: the name of the network in keras.applications.
      image_sizes: height and width of the images of each row, pixels.
      batch_size: images per step.
      num_classes: the number of classes.
      dtype: the dtype to compute in, e.g. `bfloat16`.
      needs_gpu: fail without a GPU.
    """

    backbone: str
    image_sizes: tuple[tuple[str, int], ...]
    batch_size: int
    num_classes: int
    dtype: str
    needs_gpu: bool = False


def is_installed() -> bool:
    """Whether PyTorch and timm can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


def measure(stage: str, work: Work) -> float:
    """Takes a measurement of one of `STAGES`, images/s.

    Raises:
      Exception: PyTorch or timm fails, or timm has no such network.
    """
    return measurement.rate(_make(stage, work))


@functools.cache
def _make(stage: str, work: Work) -> Callable[[], int]:
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if work.needs_gpu and device == "cpu":
        raise RuntimeError("this PyTorch finds no GPU")
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(
        _timm_name(work.backbone, timm.list_models()),
        num_classes=work.num_classes,
    )
    model = model.to(device, memory_format=torch.channels_last)
    size = dict(work.image_sizes)[stage]
    shape = [work.batch_size, 3, size, size]
    images = torch.randn(shape, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(work.batch_size, dtype=torch.long, device=device)
    # Weights that don't change can't become NaN; speed doesn't depend on it.
    optimizer = torch.optim.AdamW(model.parameters(), 1e-9, fused=True)
    autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
    if work.dtype != "float32":
        autocast = torch.autocast(device, getattr(torch, work.dtype))

    def step() -> int:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()
        return work.batch_size

    def forward() -> int:
        with torch.no_grad(), autocast:
            model(images).sum().item()
        return work.batch_size

    model.train(stage == STEP)
    return step if stage == STEP else forward


def _timm_name(backbone: str, names: list[str]) -> str:
    """Returns timm's name of a network.

    Raises:
      ValueError: timm has no network of that name.
    """

    def plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "")

    found = [name for name in names if plain(name) == plain(backbone)]
    if not found:
        raise ValueError(f"timm has no network named {backbone}")
    return found[0]
