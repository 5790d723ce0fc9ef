"""`seedthink generate`: answers from a model, to the terminal or to a JSONL file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from errno import EACCES, EISDIR
from math import prod
from pathlib import Path
from typing import Any

from seedthink.cli.recipe_command import resolve
from seedthink.config import GenerateConfig
from seedthink.errors import ConfigError, DataError
from seedthink.parallel.launch import launched
from seedthink.telemetry.jsonl import write_atomic, writing

EXAMPLES = """  seedthink generate --model.path runs/quickstart/export --request.prompt "7 8 32 -> 24"
  seedthink generate --model.path my-model --request.input prompts.jsonl --request.output answers.jsonl
  echo "2 + 2 =" | seedthink generate --model.path my-model --request.prompt -"""


def run(arguments: Sequence[str]) -> int:
    """Answer the prompts of a request."""
    config, _ = resolve(GenerateConfig, "generate", EXAMPLES, arguments)
    if config is None:
        return 0
    if not config.model.path:
        raise ConfigError("model.path is empty: give the folder of a model with --model.path FOLDER")
    check_alone(config)
    prompts = list(read_prompts(config))
    if config.request.output:
        with writing(Path(config.request.output)):  # before the answers, which would be lost
            _check_writable(Path(config.request.output).absolute())
    from seedthink.controller.llm import LLM

    sampling = config.generation
    llm = LLM(
        config.model.path,
        dtype=config.model.dtype,
        kv_memory_mib=sampling.kv_memory_mib,
        max_batch_tokens=sampling.max_batch_tokens,
        max_sequences=sampling.max_sequences,
    )
    asked = [as_chat(prompt) for prompt in prompts] if _renders_chat(config, llm) else prompts
    answers = llm.generate(
        asked,
        n=config.request.samples,
        seed=config.request.seed,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop=sampling.stop,
    )
    if config.request.output:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(prompts, answers)]
        write_atomic(Path(config.request.output), "\n".join(lines) + "\n")
        print(f"{len(lines)} answers in {config.request.output}")
    else:
        print("\n\n".join(completion.text for found in answers for completion in found))
    return 0


def check_alone(config: GenerateConfig) -> None:
    """ConfigError where more than one process is asked for, or started: each would answer every prompt."""
    asked, launch = config.parallel, launched()
    ranks = prod((asked.dp_replicate, asked.dp_shard or 1, asked.cp, asked.tp, asked.ep))
    if ranks > 1 or launch is not None:
        said = f"{launch.launcher} started {launch.size}" if launch else f"[parallel] asks for {ranks}"
        raise ConfigError(
            f"generate answers in one process, but {said}: remove [parallel] and start it without torchrun or mpirun; "
            "seedthink eval samples on many ranks"
        )


def read_prompts(config: GenerateConfig) -> Iterator[Any]:
    """Yield prompts: the one given, one from standard input, or those of a JSONL file."""
    request = config.request
    if bool(request.prompt) == bool(request.input):
        raise ConfigError(
            "give one of request.prompt (a text, or - for standard input) and request.input (a JSONL file)"
        )
    if request.prompt:
        yield sys.stdin.read() if request.prompt == "-" else request.prompt
        return
    try:
        lines = Path(request.input).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"request.input {request.input} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"request.input {request.input} is no UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{request.input} line {number} is not an object with "prompt"') from None


def as_chat(prompt: Any) -> Any:
    """Return a prompt as chat messages: a bare text becomes what the user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def rows(prompts: Sequence[Any], answers: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield one record per answer."""
    for prompt, found in zip(prompts, answers, strict=True):
        for completion in found:
            yield {
                "prompt": prompt,
                "completion": completion.text,
                "finish": str(completion.finish),
                "tokens": len(completion.tokens_T),
                "logprob": float(completion.logprob_T.sum()),
            }


def _check_writable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(EACCES, "its folder takes no files")


def _renders_chat(config: GenerateConfig, llm: Any) -> bool:
    return config.request.chat == "auto" and llm.tokenizer.chat_template is not None
