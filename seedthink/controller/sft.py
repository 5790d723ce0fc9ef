"""Supervised fine-tuning: the pipeline's table without sampling and credit, and with imitation as the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seedthink.config.commands import SftConfig
from seedthink.controller.groups import WorkerGroup
from seedthink.controller.loop import MINUTE, averaged
from seedthink.controller.session import Session
from seedthink.data.sft import SftExample
from seedthink.data.sources import Source
from seedthink.engine.micro_batch import unlabelled_batch
from seedthink.errors import RunError
from seedthink.telemetry.terminal import Terminal
from seedthink.types import Batch, Prompt, SamplingParams

if TYPE_CHECKING:
    from seedthink.types import Int32


@dataclass
class SftJob:
    """One SFT run; `total_steps` is where it ends, `step` what has been done."""

    config: SftConfig
    session: Session
    engine: WorkerGroup
    examples: Source[SftExample]
    held_out: Sequence[Prompt]
    terminal: Terminal
    total_steps: int
    step: int = 0


def train_sft(job: SftJob) -> None:
    """Runs the remaining steps; Ctrl-C or the time limit ends it after the step at hand."""
    run, config = job.session.run, job.config
    skipped = 0
    while not finished(job):
        run.events.step = job.step = job.step + 1
        with run.events.span("step"):
            examples = draw(job)
            batches = pack_examples(examples, config.trainer.micro_batch_tokens, job.engine.layout.data)
            update, *_ = job.engine.learn(batches)
        metrics = averaged([update]) | run.events.take()
        metrics["perf/throughput"] = sum(len(each.tokens_T) for each in examples) / metrics["timing_s/step"]
        run.record("sft", job.step, metrics)
        job.terminal.step(job.step, metrics)
        skipped = skipped + 1 if update.skipped else 0
        if skipped:
            where = run.record_skipped(job.step, offending(job, examples))
        if skipped > config.trainer.max_skipped_steps:
            raise RunError(
                f"step {job.step}: {skipped} updates in a row were skipped ({update.skipped}); their examples are in "
                f"{where}. Lower optimizer.lr, or raise trainer.max_skipped_steps"
            )
        if config.checkpoint.every_steps and job.step % config.checkpoint.every_steps == 0:
            save_sft(job)
        evaluate_if_due(job)


def offending(job: SftJob, examples: Sequence[SftExample]) -> list[dict[str, Any]]:
    """The examples of a step that was skipped, as rows to look at."""
    decode = job.session.tokenizer.decode
    return [
        {
            "id": example.id,
            "tokens": len(example.tokens_T),
            "text": decode(example.tokens_T.tolist(), skip_special_tokens=False),
        }
        for example in examples
    ]


def finished(job: SftJob) -> bool:
    """Whether the steps, the time or the user's patience are at their end."""
    limit = job.config.run.time_limit_minutes
    out_of_time = bool(limit) and job.session.run.seconds >= limit * MINUTE
    return job.session.stop.requested or out_of_time or bool(job.total_steps and job.step >= job.total_steps)


def draw(job: SftJob) -> list[SftExample]:
    """Examples up to `data.batch_tokens` tokens, at least one per data index."""
    drawn: list[SftExample] = []
    tokens = 0
    while tokens < job.config.data.batch_tokens or len(drawn) < job.engine.layout.data:
        (example,) = job.examples.next(1)
        drawn.append(example)
        tokens += len(example.tokens_T)
    return drawn


def pack_examples(examples: Sequence[SftExample], token_budget: int, ranks: int = 1) -> list[Batch]:
    """One batch per data index; micro-batches hold up to `token_budget` tokens, or one longer example.

    All have as many micro-batches, since collectives in a forward pass need all ranks: the shortest example, with mask
    0, stands in where there are fewer, and counts nowhere.
    """
    total = float(sum(example.mask_T.sum() for example in examples))
    dealt = [examples[rank::ranks] for rank in range(ranks)]
    batches = [
        unlabelled_batch(
            [example.tokens_T for example in mine],
            [example.mask_T for example in mine],
            token_budget,
            total,
            float(len(examples)),
        )
        for mine in dealt
    ]
    most = max(_micro_batches(batch) for batch in batches)
    filler_T = min((example.tokens_T for example in examples), key=len)
    return [_filled_up(batch, most, filler_T) for batch in batches]


def _micro_batches(batch: Batch) -> int:
    return int(batch.micro_B.max(initial=-1)) + 1


def _filled_up(batch: Batch, most: int, filler_T: Int32) -> Batch:
    """The batch with micro-batches of one masked `filler_T` each behind its own, `most` in all."""
    missing = np.arange(_micro_batches(batch), most, dtype=np.int32)
    fillers, nothing = np.tile(filler_T, len(missing)), np.zeros(len(missing), np.float32)
    ends = len(batch.tokens_T) + len(filler_T) * np.arange(1, len(missing) + 1, dtype=np.int32)
    return replace(
        batch,
        tokens_T=np.concatenate([batch.tokens_T, fillers]).astype(np.int32),
        cu_seqlens=np.concatenate([batch.cu_seqlens, ends]).astype(np.int32),
        micro_B=np.concatenate([batch.micro_B, missing]),
        mask_T=np.concatenate([batch.mask_T, np.zeros(len(fillers), np.float32)]),
        sequence_weight_B=np.concatenate([batch.sequence_weight_B, nothing]),
    )


def save_sft(job: SftJob) -> Path:
    """Writes the state after `job.step`."""
    extra = {"stage": "sft", "data": job.examples.state()}
    return Path(job.engine.save(job.session.run.checkpoints, job.step, extra, job.config.checkpoint.keep))


def resume_sft(job: SftJob) -> bool:
    """Restores the newest whole checkpoint; False where there is none."""
    found = job.session.restore(job.engine, "sft", job.total_steps)
    if found is None:
        job.session.run.begin_again()
        return False
    job.step, extra = found
    job.examples.restore(extra["data"])
    evaluate_if_due(job)  # killed between the checkpoint and the evaluation that follows it
    return True


def evaluate_if_due(job: SftJob) -> None:
    """Held-out accuracy every so many steps, unless a resumed run has it already; the last step's comes at the end."""
    every = job.config.evaluation.every_steps
    due = every and job.step % every == 0 and job.step != job.total_steps
    if due and not job.session.run.evaluated("sft", job.step):
        evaluate_sft(job)


def evaluate_sft(job: SftJob) -> dict[str, Any] | None:
    """Measures held-out accuracy now and records it; None where the recipe names no held-out problems."""
    generation, config = job.config.generation, job.config.evaluation
    params = SamplingParams(max_tokens=generation.max_tokens, temperature=config.temperature, stop=generation.stop)
    job.engine.publish()
    return job.session.measure(job.engine, "sft", job.step, job.held_out, config.samples, params, job.config.run.seed)
