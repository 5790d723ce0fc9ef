"""Shapes: the presets are the models they say, and a file with a mistake is told which."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedthink.bench.presets import chosen_shapes, only_first, presets
from seedthink.controller.quickstart import EXPERTS, WIDTH
from seedthink.errors import ConfigError


def test_the_presets_are_the_four_models() -> None:
    known = presets()
    assert list(known) == ["qwen3-30b-a3b", "deepseek-v3", "200b-a20b", "quickstart"]
    sizes = {name: (s.width, s.experts, s.experts_per_token, s.expert_width, s.vocabulary) for name, s in known.items()}
    assert sizes["qwen3-30b-a3b"] == (2048, 128, 8, 768, 151936)
    assert sizes["deepseek-v3"] == (7168, 256, 8, 2048, 129280)
    assert sizes["200b-a20b"] == (4096, 128, 8, 1536, 151936)
    assert (known["deepseek-v3"].score, known["deepseek-v3"].groups, known["deepseek-v3"].topk_groups) == (
        "sigmoid",
        8,
        4,
    )
    assert "in its place" in known["200b-a20b"].source


def test_the_quickstart_preset_is_the_model_that_the_quickstart_builds() -> None:
    from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer

    shapes = presets()["quickstart"]
    assert (shapes.width, shapes.experts, shapes.head_dim) == (WIDTH, EXPERTS, WIDTH // 4)
    assert shapes.vocabulary == -(-build_puzzle_tokenizer().vocab_size // 16) * 16


def test_shapes_are_chosen_by_name_all_at_once_or_from_a_file(tmp_path: Path) -> None:
    assert [shapes.name for shapes in chosen_shapes("quickstart,deepseek-v3")] == ["quickstart", "deepseek-v3"]
    assert len(chosen_shapes("all")) == len(presets())
    (tmp_path / "mine.toml").write_text('[mine]\nsource = "me"\nwidth = 64\ntokens = [1, 2]\nscans = [[3, 4]]\n')
    (mine,) = chosen_shapes(str(tmp_path / "mine.toml"))
    assert (mine.name, mine.tokens, mine.scans, mine.experts) == ("mine", (1, 2), ((3, 4),), 0)
    assert only_first(mine).tokens == (1,) and only_first(mine).width == 64


def test_products_of_very_many_tokens_are_left_to_a_gpu() -> None:
    shapes = presets()["qwen3-30b-a3b"]
    assert shapes.product_tokens("cpu") == (256, 4096) and shapes.product_tokens("cuda") == shapes.tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[a]\nsource = "x"\nwidth = 1\nexpert = 4\n', 'no key "expert"; did you mean experts'),
        ('[a]\nsource = "x"\nwidth = "1"\n', "width = '1' is not of the type int"),
        ('[a]\nsource = "x"\nwidth = 1\ntokens = [0]\n', r"tokens = \[0\] is not of the type"),
        ('[a]\nsource = "x"\nwidth = 1\nscans = [1, 2]\n', "scans"),
        ('[a]\nsource = "x"\n', "lacks width"),
        ("width = 1\n", "expected a table for each model"),
        ("[a\n", "mine.toml"),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        chosen_shapes(str(tmp_path / "mine.toml"))


def test_an_unknown_preset_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        chosen_shapes("quickstrat")
    with pytest.raises(ConfigError, match="cannot be read"):
        chosen_shapes("none.toml")
