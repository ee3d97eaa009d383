"""The folder of a training run is its own: nothing of a model or of another program is written over."""

import json
from pathlib import Path


def check_run_folder(output: Path) -> None:
    """Raise ValueError if ``output`` has a ``config.json`` or ``metrics.jsonl`` that no run of ours wrote."""
    config, metrics = output / "config.json", output / "metrics.jsonl"
    if config.is_file():
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or "num_steps" not in fields:
            raise ValueError(
                f"--output {output}: its config.json is not a training run's; give another folder"
            )
    elif metrics.is_file():
        raise ValueError(f"--output {output}: its metrics.jsonl is not a training run's; give another folder")
