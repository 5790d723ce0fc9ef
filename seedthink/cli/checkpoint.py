"""`seedthink checkpoint`: list, verify and export a run's checkpoints."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink checkpoint list runs/quickstart
  seedthink checkpoint verify runs/quickstart
  seedthink checkpoint export runs/quickstart my-model --dtype bfloat16"""


def run(arguments: Sequence[str]) -> int:
    """Dispatch to list, verify or export."""
    parser = Parser("seedthink checkpoint", EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|verify|export")
    for verb, text in (("list", "steps, sizes and times"), ("verify", "check every byte against the manifest")):
        verbs.add_parser(verb, help=text).add_argument("run", metavar="RUN")
    sub = verbs.add_parser("export", help="write a checkpoint's policy as a Hugging Face folder")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("folder", metavar="FOLDER")
    sub.add_argument("--step", type=int, help="step to export (default: the newest whole checkpoint)")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    chosen = parser.parse_args(arguments)
    return {"list": _list, "verify": _verify, "export": _export}[chosen.verb](chosen)


def found_in(run_folder: str) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first. DataError where there are none."""
    from seedthink.errors import DataError

    folder = Path(run_folder) / "checkpoints"
    found = sorted(path for path in folder.glob("step-*") if path.is_dir())
    if not found:
        raise DataError(f"{folder} holds no checkpoint; checkpoint.every_steps says how often one is written")
    return found


def _list(chosen: Namespace) -> int:
    for path in found_in(chosen.run):
        files = [file for file in path.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 2**20
        written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{path}  {size:9.1f} MiB  {written}")
    return 0


def _verify(chosen: Namespace) -> int:
    from seedthink.checkpoint.store import CheckpointStore
    from seedthink.errors import DataError

    broken = 0
    for path in found_in(chosen.run):
        try:
            CheckpointStore(path.parent).load(path)
            print(f"{path}: whole")
        except DataError as error:
            broken += 1
            print(f"{path}: {error}")
    return 1 if broken else 0


def _export(chosen: Namespace) -> int:
    import torch

    from seedthink.checkpoint.store import CheckpointStore
    from seedthink.engine.model_io import load_model, save_model
    from seedthink.errors import DataError

    paths = found_in(chosen.run)
    store = CheckpointStore(paths[0].parent)
    steps = {int(path.name.removeprefix("step-")): path for path in paths}
    path = store.latest() if chosen.step is None else steps.get(chosen.step)
    if path is None:
        raise DataError(f"no such whole checkpoint; {chosen.run} has {', '.join(each.name for each in paths)}")
    start = _start_model(Path(chosen.run) / "resolved.json")
    model = load_model(start)
    weights = store.load(path).groups["policy"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[f"weight.{name}"])
    print(save_model(model, chosen.folder, getattr(torch, chosen.dtype), tokenizer_folder=start))
    return 0


def _start_model(settings: Path) -> str:
    """Return the folder of the model that a run started from, which holds the tokenizer and says what was trained."""
    from seedthink.errors import DataError

    try:
        return str(json.loads(settings.read_text(encoding="utf-8"))["model"]["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{settings} cannot be read ({error!r}), so it is unknown which model was trained; copy the whole run "
            "folder, or start the same command again, which writes it anew"
        ) from None
