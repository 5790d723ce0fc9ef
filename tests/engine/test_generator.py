"""The generator's own duties (ends, texts, versions, errors) with a model whose next token is the last one plus one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from seedthink.engine.generator import TokenGenerator
from seedthink.errors import ConfigError, RunError
from seedthink.kernels.block import PagedBatch
from seedthink.models.config import ModelConfig
from seedthink.parallel.runs import Choice
from seedthink.parallel.shards import WHOLE
from seedthink.types import Completion, Finish, Request, SamplingParams

VOCAB = 256


class Counting:
    """After token t comes t + 1 (modulo 256): its hidden state is the next token, one-hot."""

    config = ModelConfig(
        family="qwen3",
        vocab_size=VOCAB,
        hidden_size=VOCAB,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=100,
        eos_token_ids=(50,),
    )
    shards = WHOLE
    compute = torch.float32

    def advance(self, tokens_T: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        return torch.nn.functional.one_hot((tokens_T + 1) % VOCAB, VOCAB).float() * 60.0

    def logits(self, hidden_TD: torch.Tensor, wanted: Choice) -> torch.Tensor:
        return hidden_TD.index_select(0, wanted.rows)


class Bytes:
    """Token ids are UTF-8 bytes."""

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


def generator(**settings: object) -> TokenGenerator:
    return TokenGenerator(Counting(), **{"pages": 16, "detokenizer": Bytes(), **settings})  # type: ignore[arg-type]


def request(name: str, prompt: Sequence[int], max_tokens: int = 8, **params: object) -> Request:
    return Request(name, np.array(prompt, dtype=np.int32), SamplingParams(max_tokens=max_tokens, **params), seed=1)  # type: ignore[arg-type]


def run(engine: TokenGenerator, *requests: Request) -> dict[str, Completion]:
    engine.submit(requests)
    found = []
    while not engine.idle:
        found += engine.step()
    return {completion.id: completion for completion in found}


def test_it_counts_on_until_max_tokens() -> None:
    done = run(generator(), request("a", [65, 66], max_tokens=4))["a"]
    assert done.tokens_T.tolist() == [67, 68, 69, 70] and done.finish is Finish.LENGTH and done.text == "CDEF"
    assert done.tokens_T.dtype == np.int32 and done.logprob_T.dtype == np.float32 and done.version_T.dtype == np.int32
    assert done.logprob_T.shape == (4,) and (np.abs(done.logprob_T) < 1e-6).all()


def test_an_end_of_sequence_token_is_a_token_but_no_text() -> None:
    done = run(generator(), request("a", [47]), request("b", [47], max_tokens=6, ignore_eos=True))
    assert done["a"].tokens_T.tolist() == [48, 49, 50] and done["a"].finish is Finish.STOP and done["a"].text == "01"
    assert done["b"].tokens_T.tolist() == [48, 49, 50, 51, 52, 53] and done["b"].finish is Finish.LENGTH


def test_the_end_of_sequence_tokens_can_be_replaced() -> None:
    engine = generator(eos_token_ids=(49, 70))
    done = run(engine, request("a", [47]), request("b", [68]))
    assert done["a"].tokens_T.tolist() == [48, 49] and done["b"].tokens_T.tolist() == [69, 70]


def test_a_stop_token_on_the_last_allowed_position_is_a_stop() -> None:
    assert run(generator(), request("a", [47], max_tokens=3))["a"].finish is Finish.STOP


def test_stop_token_ids_belong_to_their_request() -> None:
    done = run(generator(), request("a", [65], stop_token_ids=(68,)), request("b", [65], max_tokens=5))
    assert done["a"].tokens_T.tolist() == [66, 67, 68] and done["a"].text == "BC" and done["a"].finish is Finish.STOP
    assert len(done["b"].tokens_T) == 5


def test_a_stop_string_over_several_tokens_leaves_the_text_and_keeps_the_tokens() -> None:
    done = run(generator(), request("a", [65], stop=("zz", "DEF")))["a"]
    assert done.text == "BC" and bytes(done.tokens_T.tolist()) == b"BCDEF" and done.finish is Finish.STOP


def test_the_prompt_is_not_searched_for_stop_strings() -> None:
    done = run(generator(), request("a", [65, 66, 67], max_tokens=3, stop=("BCD",)))["a"]
    assert done.finish is Finish.LENGTH and done.text == "DEF"


def test_a_stop_string_may_hold_characters_of_several_tokens() -> None:
    class Word(Bytes):
        def decode(self, tokens: Sequence[int]) -> str:  # bytes C3 C4 C5 ... shown as the two-byte characters C3 A9
            return bytes(b for token in tokens for b in ((0xC3,) if token % 2 == 0 else (0xA9,))).decode(
                "utf-8", "replace"
            )

    done = run(generator(detokenizer=Word()), request("a", [1], max_tokens=9, stop=("\u00e9\u00e9",)))["a"]
    assert done.tokens_T.tolist() == [2, 3, 4, 5] and done.text == "" and done.finish is Finish.STOP


def test_without_a_detokenizer_there_is_no_text_and_no_stop_string() -> None:
    engine = generator(detokenizer=None)
    assert run(engine, request("a", [65]))["a"].text == ""
    with pytest.raises(ConfigError, match="need a detokenizer"):
        engine.submit([request("b", [65], stop=("x",))])


def test_every_token_knows_the_version_that_made_it() -> None:
    engine = generator(max_batch_tokens=4)
    engine.set_version(3)
    engine.submit([request("a", [65], max_tokens=6), request("b", [60, 61, 62, 63, 64, 65], max_tokens=3)])
    engine.step()
    engine.step()
    engine.set_version(4)
    done = {}
    while not engine.idle:
        done.update({completion.id: completion for completion in engine.step()})
    assert done["a"].version_T.tolist() == [3, 3, 4, 4, 4, 4]
    assert done["a"].tokens_T.tolist() == [66, 67, 68, 69, 70, 71]
    assert set(done["b"].version_T.tolist()) <= {3, 4} and len(done["b"].version_T) == 3


def test_an_aborted_request_comes_back_with_what_it_has_and_frees_its_pages() -> None:
    engine = generator()
    engine.submit([request("a", [65], max_tokens=50), request("b", [65], max_tokens=4)])
    engine.step()
    engine.step()
    engine.abort(["a", "nobody"])
    assert not engine.idle
    first = engine.step()
    assert [(each.id, each.finish, each.text) for each in first] == [("a", Finish.ABORTED, "BC")]
    assert [each.id for each in engine.step()] == ["b"]
    assert engine.idle and engine.stats.pages_used == 0


def test_a_request_can_be_aborted_before_it_ran() -> None:
    engine = generator(max_sequences=1)
    engine.submit([request("a", [65], max_tokens=2), request("b", [65])])
    engine.step()
    engine.abort(["b"])
    done = {each.id: each for _ in range(2) for each in engine.step()}
    assert done["b"].finish is Finish.ABORTED and len(done["b"].tokens_T) == 0 and len(done["b"].version_T) == 0
    assert done["a"].finish is Finish.LENGTH and engine.idle


def test_collect_returns_as_soon_as_something_finished_and_when_time_is_up() -> None:
    engine = generator()
    engine.submit([request("a", [65], max_tokens=3), request("b", [65], max_tokens=9)])
    assert engine.collect(0.0) == []
    assert engine.stats.steps == 1
    assert [each.id for each in engine.collect(60.0)] == ["a"]
    assert engine.stats.steps == 3
    assert [each.id for each in engine.collect(60.0)] == ["b"]
    assert engine.idle and engine.collect(60.0) == []


def test_requests_that_can_never_run_are_refused_with_the_numbers() -> None:
    engine = generator(pages=3)
    cases = [
        (request("a", [1] * 90, 20), r"90 prompt tokens \+ max_tokens 20 = 110.*100 positions"),
        (request("a", [1] * 40, 9), r"40 prompt tokens \+ max_tokens 9 = 49.*has 48 \(3 pages of 16\)"),
        (request("a", []), "no tokens"),
        (request("a", [1, 256]), r"outside 0\.\.255"),
        (request("a", [-1]), r"outside 0\.\.255"),
        (request("a", [1], 0), "max_tokens = 0"),
        (request("a", [1], temperature=-1.0), r"temperature = -1\.0"),
        (request("a", [1], temperature=float("nan")), "temperature = nan"),
        (request("a", [1], top_p=0.0), r"top_p = 0\.0"),
        (request("a", [1], top_k=-1), "top_k = -1"),
        (request("a", [1], stop=("",)), "may not be empty"),
        (request("ok", [1]), "another request in flight"),
    ]
    for bad, message in cases:
        with pytest.raises(ConfigError, match=message):
            engine.submit([request("ok", [1]), bad])
        assert engine.idle, "a refused list leaves nothing behind"
    assert len(run(engine, request("a", [1] * 40, 8))["a"].tokens_T) == 8


def test_an_id_may_be_used_again_after_it_finished() -> None:
    engine = generator()
    first, second = run(engine, request("a", [65])), run(engine, request("a", [70]))
    assert first["a"].tokens_T[0] == 66 and second["a"].tokens_T[0] == 71


def test_settings_below_one_are_refused() -> None:
    for name in ("pages", "max_batch_tokens", "max_sequences"):
        with pytest.raises(ConfigError, match=f"{name} = 0"):
            generator(**{name: 0})


def test_the_counts_add_up_and_reset_clears_them() -> None:
    engine = generator(max_sequences=1)
    engine.submit([request("a", [65] * 20, max_tokens=3), request("b", [65] * 20, max_tokens=3)])
    engine.step()
    now = engine.stats
    assert (now.running, now.waiting, now.pages_used, now.pages_total, now.computed_tokens) == (1, 1, 2, 16, 20)
    while not engine.idle:
        engine.step()
    end = engine.stats
    assert (end.running, end.waiting, end.pages_used, end.generated_tokens, end.cached_tokens) == (0, 0, 0, 6, 16)
    assert end.computed_tokens == 20 + 2 + 4 + 2 and end.steps == 6 and end.seconds > 0
    engine.submit([request("c", [65])])
    engine.reset()
    assert engine.idle and engine.stats.steps == 0 and engine.stats.waiting == 0
    assert run(engine, request("c", [65]))["c"].cached_tokens == 0


class Diverged(Counting):
    """A model that computes NaN."""

    def logits(self, hidden_TD: torch.Tensor, wanted: Choice) -> torch.Tensor:
        return super().logits(hidden_TD, wanted) * float("nan")


def test_a_model_that_computes_nan_ends_the_run_with_a_reason() -> None:
    engine = TokenGenerator(Diverged(), pages=16)  # type: ignore[arg-type]
    engine.submit([request("a", [1, 2])])
    with pytest.raises(RunError, match="computes NaN or infinity"):
        engine.step()


def test_a_stop_token_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"end-of-sequence token 256 is outside 0..255"):
        generator(eos_token_ids=[50, VOCAB])
