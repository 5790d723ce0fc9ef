"""The decoder of every family, the exact Hugging Face architecture.

    h = embed[tokens]; for each block: h += attention(norm(h)); h += mlp(norm(h)); logits = norm(h) head^T

`forward` trains and scores packed sequences, with the context supplying positions and attention; `advance` generates,
through the same kernels in the same order. What a layer is made of (experts, norms, biases) is the config's business.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from seedthink.kernels.block import PagedBatch
from seedthink.kernels.linear import linear
from seedthink.kernels.norm import add_rms_norm, rms_norm
from seedthink.kernels.rope import rope_table
from seedthink.kernels.rope_scaling import RopeScaling
from seedthink.models.config import ModelConfig
from seedthink.models.context import Context, Watcher
from seedthink.models.cuts import cut_of
from seedthink.models.keeping import Keeping
from seedthink.models.layers import Block
from seedthink.models.parameter import empty
from seedthink.models.sharded_context import PagedContext, sharded
from seedthink.parallel.runs import Choice
from seedthink.parallel.shards import WHOLE, Shards


@lru_cache(maxsize=8)
def _shared_table(max_positions: int, head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    with torch.inference_mode(False):  # shared with models that train, whoever builds the first one
        return rope_table(max_positions, head_dim, theta, scaling)


class Transformer(nn.Module):
    """A decoder without values yet: call `init_weights`, or load a folder into it.

    compute: float32 or bfloat16, the dtype of matrix operands and of cached keys and values. with_head False leaves the
    vocabulary projection out (a critic's trunk needs none). shards: which part of the weights is here. keeping:
    what a forward that records gradients keeps for its backward. watcher: who is told, while it learns, where
    tokens go.
    """

    table: Tensor

    def __init__(
        self,
        config: ModelConfig,
        compute: torch.dtype = torch.float32,
        *,
        with_head: bool = True,
        shards: Shards = WHOLE,
    ) -> None:
        super().__init__()
        self.shards, self.keeping = shards, Keeping()
        self.watcher: Watcher | None = None
        self.config, self.compute, self.eps = config, compute, config.rms_norm_eps
        self.vocabulary = shards.vocabulary(config.vocab_size)
        self.embed_VD = empty(self.vocabulary.held, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer, compute, shards) for layer in range(config.num_layers))
        self.norm_D = empty(config.hidden_size)
        if with_head and not config.tie_word_embeddings:
            self.unembed_VD = empty(self.vocabulary.held, config.hidden_size)
        angles = config.rope_dim, config.rope_theta, config.rope_scaling
        table = _shared_table(config.max_position_embeddings, *angles)
        self.register_buffer("table", table, persistent=False)

    @property
    def head_VD(self) -> Tensor:
        """The vocabulary projection: the embedding itself where the config ties them."""
        return self.embed_VD if self.config.tie_word_embeddings else self.unembed_VD

    def forward(self, tokens_T: Tensor, context: Context) -> Tensor:
        """int64 tokens_T -> float32 hidden_TD after the final norm; positions must be below max_position_embeddings.

        Where ranks share the model these are the rows of this rank's run (parallel/runs.py).
        """
        hidden_TD, delta_TD = self.vocabulary.embed(tokens_T, self.embed_VD), None
        table = self.table
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            hidden_TD, delta_TD = self.keeping.run(number, block, hidden_TD, delta_TD, table, context)
        assert delta_TD is not None, "a model has at least one block"
        return add_rms_norm(hidden_TD, delta_TD, self.norm_D, self.eps)[1]

    @torch.inference_mode()
    def advance(self, tokens_T: Tensor, batch: PagedBatch) -> Tensor:
        """`forward` for generation, with the same bits: int64 tokens_T -> hidden_TD, keys and values in pages.

        Where ranks share the model each gets all tokens and gives the rows of its run.
        """
        if not self.shards.alone:
            run = self.shards.run(len(tokens_T))
            hidden_TD: Tensor = self(run.own(tokens_T), sharded(PagedContext(batch), run, self.shards, self.compute))
            return hidden_TD
        hidden_TD = self.vocabulary.embed(tokens_T, self.embed_VD)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.advance(hidden_TD, self.table, batch)
        return rms_norm(hidden_TD, self.norm_D, self.eps)

    def logits(self, hidden_TD: Tensor, wanted: Choice | None = None) -> Tensor:
        """Rows of hidden states -> float32 logits_TV, of all of them or of those of `wanted` that are here.

        Where ranks share the model there is a choice, and no autograd.
        """
        if wanted is None:
            return linear(hidden_TD, self.head_VD, self.compute)
        return self.vocabulary.logits(hidden_TD, wanted, self.head_VD, self.compute)

    def logprobs(self, hidden_TD: Tensor, wanted: Choice, targets_R: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """(logprob_R, entropy_R) of the targets of all wanted rows, whichever rank has them."""
        return self.vocabulary.logprobs(hidden_TD, wanted, self.head_VD, targets_R, temperature, self.compute)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Norms 1, biases 0, all else normal with `config.initializer_range`: a function of the seed and the config.

        A part of a weight gets its rows of the whole, so shards change nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if "bias" in name else 1.0)
                continue
            cut = cut_of(name, parameter, self.config, self.shards.seat)
            whole = parameter if cut.whole else parameter.new_empty((cut.rows, *parameter.shape[1:]))
            whole.normal_(0.0, self.config.initializer_range, generator=generator)
            if not cut.whole:
                parameter.copy_(cut.of(whole))
