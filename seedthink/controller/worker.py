"""The worker of a group: an engine whose verbs carry their transfer protocols.

Prompts and samples are split over data indices, mini-batches come one per data index, weights are published by all.
Whoever writes is rank 0, but every rank takes part: a tensor that is sharded has to be put together first.
The losses are built here, inside the worker, from the algorithm's settings: a closure never crosses a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seedthink.checkpoint.store import CheckpointStore
from seedthink.config.algorithm import AlgorithmConfig
from seedthink.controller.groups import Place
from seedthink.controller.protocol import (
    FIRST,
    GATHERED,
    ONE_TO_ALL,
    PER_RANK,
    SPLIT,
    remote,
)
from seedthink.controller.shortage import explained
from seedthink.data.tokenizer import Tokenizer
from seedthink.engine.engine import Engine, EngineSettings, Losses
from seedthink.engine.model_io import save_model, save_value_model
from seedthink.kernels.build import set_threads
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel
from seedthink.rl.algorithm import build_policy_loss, build_value_loss
from seedthink.rl.loss import imitation
from seedthink.types import Batch, Completion, Request, Scored, Update, Valued

PATIENCE = 600.0  # seconds that a rank waits for another in a collective


def mesh_at(place: Place) -> Any:
    """The ranks that learn together; None where there is one. Loading torch's collectives takes time, so only then."""
    if place.size == 1:
        return None
    from seedthink.parallel.mesh import Mesh
    from seedthink.parallel.replicas import Replicas

    return Mesh(place.layout, Replicas(place.rank, place.size, place.rendezvous, PATIENCE))


class EngineWorker(Engine):
    """See the module's docstring. `algorithm` None makes the policy's loss plain imitation (SFT)."""

    def __init__(self, place: Place, settings: EngineSettings, algorithm: AlgorithmConfig | None) -> None:
        self.place = place
        self._sampling = "rollout" if algorithm else "generation"  # the section of kv_memory_mib
        torch.set_num_threads(1)  # torch's own team spins while it idles, and takes turns with ours on the same cores
        set_threads(place.threads)
        if algorithm is None:
            losses = Losses(imitation)
        else:
            policy = build_policy_loss(algorithm, max_tokens=settings.rollout.max_tokens)
            losses = Losses(policy, build_value_loss(algorithm))
        tokenizer = Tokenizer.load(settings.model)
        with explained("build", settings, place.layout, self._sampling):
            super().__init__(settings, losses, tokenizer, tokenizer.eos_token_ids, mesh_at(place))

    @remote(SPLIT)
    def submit(self, requests: Sequence[Request]) -> None:
        """Queue generations, split over data indices."""
        super().submit(requests)

    @remote(GATHERED)
    def collect(self, timeout: float) -> Sequence[Completion]:
        """Completions of all data indices."""
        return super().collect(timeout)

    @remote(ONE_TO_ALL)
    def abort(self, ids: Sequence[str]) -> None:
        """Give requests up, wherever they are."""
        super().abort(ids)

    @remote(SPLIT)
    def score(self, scored: Sequence[Scored]) -> list[Valued]:
        """Values and log-probs of samples, split over data indices."""
        return super().score(scored)

    @remote(PER_RANK)
    def learn(self, batch: Batch) -> Update:
        """One optimizer step; one batch per data index."""
        with explained("learn", self.settings, self.place.layout, self._sampling):
            return super().learn(batch)

    @remote(PER_RANK)
    def learn_value(self, batch: Batch) -> Update:
        """One optimizer step of the critic; one batch per data index."""
        with explained("learn_value", self.settings, self.place.layout, self._sampling):
            return super().learn_value(batch)

    @remote(FIRST)
    def publish(self) -> int:
        """Make the learned weights the next version, everywhere."""
        return super().publish()

    @remote(FIRST)
    def save(self, folder: Path, step: int, extra: Mapping[str, Any], keep: int) -> Path | None:
        """Write a checkpoint of this step and prune older ones, parts of all ranks put together; None beside rank 0."""
        state = self.state()
        if self.place.rank:
            return None
        store = CheckpointStore(folder)
        path = store.save(step, state, {**extra, "version": self.version})
        store.prune(keep)
        return path

    @remote(FIRST)
    def restore(self, path: Path) -> Mapping[str, Any]:
        """Load a checkpoint; returns the `extra` that it was saved with."""
        checkpoint = CheckpointStore(path.parent).load(path)
        self.load_state(checkpoint.groups, int(checkpoint.extra["version"]))
        return checkpoint.extra

    @remote(FIRST)
    def export(self, folder: Path, dtype: str = "float32") -> Path | None:
        """Write the policy as a Hugging Face folder, tokenizer included; None where another rank writes."""
        assert isinstance(self.policy.module, Transformer)
        weights = self.policy.weights()
        if self.place.rank:
            return None
        return save_model(self.policy.module, folder, getattr(torch, dtype), self.settings.model, weights)

    @remote(FIRST)
    def export_critic(self, folder: Path) -> Path | None:
        """Write the critic as a folder that `value_pretraining.critic_path` takes; None where another rank writes."""
        assert self.critic is not None and isinstance(self.critic.module, ValueModel)
        weights = self.critic.weights()
        return None if self.place.rank else save_value_model(self.critic.module, folder, parameters=weights)

    @remote(FIRST)
    def parameters(self) -> dict[str, int]:
        """Parameters of the policy."""
        return super().parameters()
