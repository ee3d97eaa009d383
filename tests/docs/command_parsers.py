"""Command lines of the documentation, held against the real parsers without running anything."""

import functools
import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from jobs.config_file import parse_config
from tests.docs.fences import ROOT, words

PLACEHOLDERS = {"...", "…"}
"""Words that say "and so on": a command with one is held against its names only."""


def check_command(line: str) -> None:
    """Raises AssertionError or whatever the parser raises, if a command could not be typed as it stands."""
    with_optional = re.sub(r"\s\[(--[^\]]+)\]", r" \1", line)
    for part in re.split(r"\s(?:&&|\|)\s", with_optional.removeprefix("(").removesuffix(")")):
        _check_words(words(part))


def _check_words(parts: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", parts[0]):  # variables
        parts = parts[1:]
    program = parts[0].removeprefix(".venv/bin/")
    assert program in PROGRAMS, f"no test knows {program!r}: {shlex.join(parts)}"
    if not PLACEHOLDERS & set(parts):
        PROGRAMS[program](parts[1:])


def _job(path: str, arguments: list[str]) -> None:
    assert (ROOT / path).is_file(), path
    name = Path(path).stem
    if name == "evaluate":
        from jobs.evaluate import Command

        tyro.cli(Command, args=arguments)
        return
    parse_config(_job_config(name), _with_config_at_hand(arguments))


def _job_config(name: str) -> type[Any]:
    from jobs import (
        compare_attention,
        generate,
        ingest,
        pretrain,
        tokenize_chats,
        tokenize_obelics,
        tokenize_pairs,
        tokenize_videos,
        train_tokenizer,
    )

    return {
        "compare_attention": compare_attention.CompareConfig,
        "ingest": ingest.IngestJobConfig,
        "tokenize_pairs": tokenize_pairs.PairsJobConfig,
        "tokenize_videos": tokenize_videos.VideosJobConfig,
        "tokenize_obelics": tokenize_obelics.ObelicsJobConfig,
        "tokenize_chats": tokenize_chats.ChatsJobConfig,
        "pretrain": pretrain.PretrainConfig,
        "generate": generate.GenerateConfig,
        "train_tokenizer": train_tokenizer.TrainTokenizerConfig,
    }[name]


def _with_config_at_hand(arguments: list[str]) -> list[str]:
    """Recipes are read from the repository; a file of the reader's stands for the required flags."""
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    file = arguments[at + 1]
    rest = arguments[:at] + arguments[at + 2 :]
    if file.startswith("recipes/"):
        return ["--config", str(ROOT / file), *rest]
    return ["--input", "a.tar", "--output", "out", *rest]


def _python(parts: list[str]) -> None:
    if parts[0] != "-m":
        script, *arguments = parts
        if script.startswith("jobs/"):
            _job(script, arguments)
        else:
            assert (ROOT / script).is_file(), script
        return
    module, *arguments = parts[1:]
    if module == "tokenizer":
        from tokenizer.__main__ import _parser

        _parser().parse_args(arguments)
    elif module.startswith("jobs."):
        _job(module.replace(".", "/") + ".py", arguments)
    elif module.startswith("benchmarks."):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    else:
        assert module in ("pytest", "venv", "build", "lmms_eval"), module


def _seed_shards(parts: list[str]) -> None:
    from pipeline.inspect_shards import make_parser

    make_parser().parse_args(parts)


def _seed_pack(parts: list[str]) -> None:
    from pipeline.packing.cli import COMMANDS

    tyro.extras.subcommand_cli_from_dict(
        {name: _idle(command) for name, command in COMMANDS.items()}, args=parts
    )


def _idle(command: Callable[..., int]) -> Callable[..., int]:
    """The same signature, so the same command line; nothing is done."""

    @functools.wraps(command)
    def nothing(*_: object, **__: object) -> int:
        return 0

    nothing.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return nothing


def _torchrun(parts: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(parts)
    if options.nnodes not in ("1", "1:1") and not options.rdzv_endpoint:
        raise ValueError("on several nodes each would be the first of its own group without --rdzv-endpoint")
    _python([options.training_script, *options.training_script_args])


def _ray(parts: list[str]) -> None:
    from ray.scripts.scripts import cli

    if "--" in parts:
        _check_words(parts[parts.index("--") + 1 :])
    command: Any = cli
    while hasattr(command, "commands"):
        name, *parts = parts
        command = command.commands[name]
    context = command.make_context(command.name, list(parts))
    _files([value for value in context.params.values() if isinstance(value, str)])
    if command.name == "exec":  # on the head of a cluster, by its shell
        check_command(context.params["cmd"])


def _pip(parts: list[str]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for part in parts:
        if match := re.match(r"(?:seed-shards|\.)\[([\w,]+)\]", part):
            assert set(match[1].split(",")) <= project["optional-dependencies"].keys(), part


def _make(parts: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in parts:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def _files(parts: list[str]) -> None:
    """Files of ours that another's program is given."""
    for part in parts:
        if part.startswith(("deploy/", "tests/")):
            assert (ROOT / part).exists(), part


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "seed-shards": _seed_shards,
    "seed-pack": _seed_pack,
    "torchrun": _torchrun,
    "ray": _ray,
    "pip": _pip,
    "make": _make,
    "pytest": _files,
}
FOREIGN = ["kubectl", "sbatch", "docker", "hf", "source", "mkdir", "cd", "tar", "export", "git"]
FOREIGN += ["ruff", "mypy"]
PROGRAMS |= dict.fromkeys(FOREIGN, _files)
