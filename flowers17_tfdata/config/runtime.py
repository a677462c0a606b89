"""The flags of devices, precision, output and interruptions."""

from __future__ import annotations

import dataclasses

from flowers17_tfdata.config.option import Kind, Needs, option
from flowers17_tfdata.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """Devices, precision, console output and interruptions."""

    console: str = option(
        "normal",
        "quiet prints errors alone; normal prints results, and progress bars "
        "on a terminal; verbose adds details and TensorFlow's notes; json "
        "prints one object per line.",
        Kind.FREE,
        choices=("quiet", "normal", "verbose", "json"),
    )
    strategy: str = option(
        "auto",
        "default uses one device, mirrored all devices of this machine, "
        "multi_worker those of all workers; auto takes multi_worker where "
        "TF_CONFIG or SLURM names several workers, else mirrored where there "
        "are several devices.",
        Kind.FREE,
        common=True,
        choices=("auto", "default", "mirrored", "multi_worker"),
    )
    num_virtual_devices: int = option(
        0,
        "Split the CPU or the one GPU into N logical devices, to try replicas "
        "on one machine (0: do not).",
        Kind.FREE,
        bounds=(0, 64),
        needs=(Needs("strategy", ("default",), never=True, above=1),),
    )
    launch_local: int = option(
        0,
        "Start N workers of a cluster on this machine, to try one (0: do not).",
        Kind.FREE,
        bounds=(0, 64),
        needs=(
            Needs("strategy", ("auto", "multi_worker")),
            Needs("phase", ("predict", "compare"), never=True),
        ),
    )
    precision: str = option(
        "auto",
        "auto takes mixed_bfloat16 where the hardware supports it, "
        "mixed_float16 on older GPUs with tensor cores, else float32.",
        Kind.RUN,
        common=True,
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    xla: str = option(
        "auto",
        "Compile the forward and backward pass of each replica with XLA; auto "
        "does so on GPUs (on CPUs it was slower).",
        Kind.FREE,
        choices=("auto", "on", "off"),
    )
    profile_steps: str = option(
        "",
        "FIRST,LAST: write a TensorBoard profile of these steps of each stage, "
        "counted from 1.",
        Kind.FREE,
    )
    checkpoint_every_secs: float = option(
        0.0,
        "Save a checkpoint within epochs too, every so many seconds (0: only "
        "after each epoch, and at SIGTERM or SIGUSR1).",
        Kind.FREE,
        bounds=(0, None),
    )
    grace_secs: float = option(
        120.0,
        "After SIGTERM or SIGUSR1, save and exit with 42 within this time, "
        "else exit with 1, seconds.",
        Kind.FREE,
        above=0,
    )
    deterministic: bool = option(
        False,
        "Use deterministic kernels, so that the same command on the same "
        "hardware gives bit-equal results (slower on GPUs).",
        Kind.FREE,
    )
    stall_timeout_secs: float = option(
        600.0,
        "With several workers, exit with 1 if a worker is missing or no step "
        "ends within this time, seconds.",
        Kind.FREE,
        above=0,
    )
    seed: int = option(
        0,
        "Seed of initialization, order, augmentation and dropout, and of the "
        "permutations of --phase=compare.",
        Kind.TRAINING,
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
