"""The flags of devices, precision, output and interruptions."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs
from flowers17_tfdata.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """Devices, precision, console output and interruptions."""

    console: str = Kind.FREE.option(
        "normal",
        "quiet prints only errors; verbose adds details and TensorFlow's "
        "notes; json prints one object per line.",
        choices=("quiet", "normal", "verbose", "json"),
    )
    strategy: str = Kind.FREE.option(
        "auto",
        "default: one device; mirrored: all devices of this machine; "
        "multi_worker: all workers that TF_CONFIG or SLURM names; auto: "
        "whichever uses all that there is.",
        common=True,
        choices=("auto", "default", "mirrored", "multi_worker"),
    )
    num_virtual_devices: int = Kind.FREE.option(
        0,
        "Split the CPU or the GPU into N logical devices, to try replicas.",
        bounds=(0, 64),
        needs=(Needs("strategy", ("default",), never=True, above=1),),
    )
    launch_local: int = Kind.FREE.option(
        0,
        "Start N workers on this machine, to try a cluster.",
        bounds=(0, 64),
        needs=(
            Needs("strategy", ("auto", "multi_worker")),
            Needs("phase", ("predict", "compare"), never=True),
        ),
    )
    precision: str = Kind.RUN.option(
        "auto",
        "auto: mixed_bfloat16 where the hardware supports it, mixed_float16 on "
        "older GPUs with tensor cores, else float32.",
        common=True,
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    xla: str = Kind.FREE.option(
        "auto",
        "What XLA compiles of a training step; auto: the optimizer's update; "
        "on: all of it, which takes a minute on a GPU; off: nothing.",
        choices=("auto", "on", "off"),
    )
    profile_steps: str = Kind.FREE.option(
        "",
        "FIRST,LAST: profile these steps, counted from 1, for TensorBoard.",
    )
    checkpoint_every_secs: float = Kind.FREE.option(
        0.0,
        "Save within epochs too, this often, seconds (0: only after each epoch "
        "and at SIGTERM or SIGUSR1).",
        bounds=(0, None),
    )
    grace_secs: float = Kind.FREE.option(
        120.0,
        "Time to save and exit with 42 after SIGTERM or SIGUSR1, seconds.",
        above=0,
    )
    deterministic: bool = Kind.FREE.option(
        False,
        "Use deterministic kernels: bit-equal results on the same hardware.",
    )
    stall_timeout_secs: float = Kind.FREE.option(
        600.0,
        "With several workers, exit with 1 if one is missing or no step ends "
        "within this time, seconds.",
        above=0,
    )
    seed: int = Kind.TRAINING.option(
        0,
        "Seed of everything that is drawn at random, except the splits.",
        common=True,
        bounds=(0, 2**31 - 1),
    )

    @property
    def profile_range(self) -> tuple[int, int] | None:
        """The first and last step of `--profile_steps`, counted from 1.

        Raises:
          ConfigError: the flag is not two increasing numbers.
        """
        if not self.profile_steps:
            return None
        first, _, last = self.profile_steps.partition(",")
        # Plain ASCII digits: int() would take ' 1_0 ' and other scripts'.
        numbers = [int(n) for n in (first, last) if n.isascii() and n.isdigit()]
        if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
            raise ConfigError(
                "--profile_steps must be FIRST,LAST with 1 <= FIRST <= LAST; "
                f"got {self.profile_steps!r}"
            )
        return numbers[0], numbers[1]
