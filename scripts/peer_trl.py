"""TRL's SFTTrainer, a peer of scripts/bench_training.py, in an environment of its own.

`python scripts/peer_trl.py prepare FOLDER` makes the environment FOLDER/env with pip: once, a minute and 1.5 GB. torch,
transformers, peft and accelerate are those of constraints.txt, so that only the trainer differs.

`FOLDER/env/bin/python scripts/peer_trl.py train JOB OUT SETTING` trains like scripts/peer_trainer.py with a setting of
`SETTINGS`. All of them have loss on the completion alone, TRL's own head that never holds all logits, and no gradient
checkpointing, which is on by default and slower. Packing stays off: it changes how many rows an optimiser step has, and
with that what is learned. Liger's kernels need a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
OURS = ("torch", "transformers", "peft", "accelerate")
PACKAGES = ("trl==1.16.0", "datasets==5.2.0")
SETTINGS: dict[str, dict[str, Any]] = {
    "autocast": {"bf16": True},
    "bf16": {"bf16": False},
    "bf16, padding-free": {"bf16": False, "padding_free": True},
}
"""`bf16`: the Trainer's mixed precision; without it adapters and computation are bf16 throughout."""
BEST = {"raft": "bf16", "short": "bf16, padding-free"}
"""The fastest of them for each case of the benchmark, as `--full` finds them."""


def packages() -> list[str]:
    """What pip installs, each to its exact version.

    Raises: KeyError for a package that constraints.txt does not pin.
    """
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0]: line for line in lines}
    return [*(pinned[name] for name in OURS), *PACKAGES]


def prepare(folder: Path) -> Path:
    """The environment's interpreter; the environment is made when it is not there, anew when its packages change.

    Raises: subprocess.CalledProcessError when pip fails; what it said is on the terminal.
    """
    python, ready = folder / "env" / "bin" / "python", folder / "env" / ".ready"
    wanted = "\n".join(packages())
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder / "env", ignore_errors=True)
        venv.create(folder / "env", with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *packages()]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(pip, check=True, env=alone)
        ready.write_text(wanted, encoding="utf-8")
    return python


def train(job_file: Path, out: Path, name: str) -> None:
    """Train with the setting `name`, in the peer's environment."""
    import peer_trainer
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    job: peer_trainer.Job = json.loads(job_file.read_text(encoding="utf-8"))
    arguments: dict[str, Any] = peer_trainer.shared_arguments(job, out) | {
        "completion_only_loss": True,
        "gradient_checkpointing": False,
        "max_length": None,
        "use_cpu": not torch.cuda.is_available(),
        **SETTINGS[name],
    }
    adapter_dtype = {"autocast_adapter_dtype": arguments["bf16"]}
    trainer = SFTTrainer(
        model=get_peft_model(peer_trainer.load_base(job), peer_trainer.lora_config(job), **adapter_dtype),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(peer_trainer.labelled(job)),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    peer_trainer.train(trainer, out, {"setting": name, **SETTINGS[name], "gradient_checkpointing": False})


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["prepare", folder]:
            print(prepare(Path(folder)))
        case ["train", job, out, name]:
            train(Path(job), Path(out), name)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
