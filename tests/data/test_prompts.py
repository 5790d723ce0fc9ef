"""Files of problems: fields are found, bad rows are named by line, and long prompts are never cut."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from seedthink.data.prompts import Fields, load_prompts, puzzle_prompts, without_thinking
from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.data.puzzles import family, make
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import DataError

TOKENIZER = build_puzzle_tokenizer()
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_rows_become_prompts_with_tokens_reference_and_an_id_that_names_the_line(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, {"prompt": "make 3 from 1 2", "answer": 3}, "", {"prompt": "sum 1", "answer": "1", "id": "x"}
    )
    first, second = load_prompts(path, TOKENIZER, family="exact").prompts
    assert (first.id, first.family, first.text) == (f"{path}:1", "exact", "make 3 from 1 2")
    assert first.tokens_T.tolist() == TOKENIZER.apply_chat([{"role": "user", "content": "make 3 from 1 2"}])
    assert first.tokens_T.dtype.name == "int32"
    # The template opens the think block, which the verifier needs to know.
    assert first.reference == {"answer": 3, "think": "open"}
    assert second.id == "x"


def test_messages_and_nested_fields_are_read_as_other_frameworks_write_them(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "sum 1 2"}, {"role": "assistant", "content": "3"}]
    rows = [
        {"prompt": [*chat, {"role": "user", "content": "sum 4"}], "reward_model": {"ground_truth": "4"}, "source": "s"}
    ]
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    fields = Fields(answer="reward_model.ground_truth", family="source")
    for path in (table, jsonl(tmp_path, *rows)):
        (prompt,) = load_prompts(path, TOKENIZER, fields=fields).prompts
        assert (prompt.text, prompt.family, prompt.reference["answer"]) == ("sum 4", "s", "4")
        assert TOKENIZER.decode(prompt.tokens_T.tolist(), skip_special_tokens=False).count("<|user|>") == 2


def test_a_system_message_is_put_first_unless_the_row_has_one(tmp_path: Path) -> None:
    files = {**TOKENIZER.files, "chat_template.jinja": PLAIN.encode()}
    tokenizer = Tokenizer(files, where="plain")
    own = [{"role": "system", "content": "mod"}, {"role": "user", "content": "sum"}]
    path = jsonl(tmp_path, {"prompt": "sum", "answer": 1}, {"prompt": own, "answer": 1})
    first, second = load_prompts(path, tokenizer, system="make").prompts
    assert first.tokens_T.tolist() == tokenizer.encode("[system]make[user]sum[a]")
    assert second.tokens_T.tolist() == tokenizer.encode("[system]mod[user]sum[a]")
    assert "think" not in first.reference


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'prompt': 1}", "rows.jsonl:2 is no JSON"),
        ("[1, 2]", "rows.jsonl:2 holds a list"),
        ({"question": "sum", "answer": 1}, "rows.jsonl:2 has no field 'prompt'; its fields are question, answer"),
        ({"prompt": "sum"}, "rows.jsonl:2 has no field 'answer'"),
        ({"prompt": "sum", "answer": None}, "rows.jsonl:2 has no field 'answer'"),
        ({"prompt": 5, "answer": 1}, "rows.jsonl:2: 'prompt' must be text or a list"),
        ({"prompt": [], "answer": 1}, "rows.jsonl:2: 'prompt' must be text or a list"),
        ({"prompt": [{"text": "x"}], "answer": 1}, "rows.jsonl:2: 'prompt' must be text or a list"),
        ({"prompt": "sum", "answer": 1, "id": "first"}, "rows.jsonl:2: the id 'first' was used at .*rows.jsonl:1"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    path = jsonl(tmp_path, {"prompt": "sum", "answer": 1, "id": "first"}, row)
    with pytest.raises(DataError, match=message):
        load_prompts(path, TOKENIZER)


def test_a_file_that_is_not_there_or_of_another_kind_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        load_prompts(tmp_path / "gone.jsonl", TOKENIZER)
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"ending '\.csv'; data files are \.jsonl or \.parquet"):
        load_prompts(tmp_path / "rows.csv", TOKENIZER)
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"rows\.parquet is no readable parquet file"):
        load_prompts(tmp_path / "rows.parquet", TOKENIZER)


def test_a_prompt_over_the_limit_is_skipped_and_counted_or_refused_and_never_cut(tmp_path: Path) -> None:
    # Three tokens around the text: 4 fit within 7, 5 do not.
    path = jsonl(tmp_path, {"prompt": "1 2 3 4", "answer": 0}, {"prompt": "1 2 3 4 5", "answer": 0})
    loaded = load_prompts(path, TOKENIZER, max_prompt_tokens=7)
    assert ([prompt.text for prompt in loaded.prompts], loaded.skipped) == (["1 2 3 4"], 1)
    assert len(loaded.prompts[0].tokens_T) == 7
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the prompt has 8 tokens, the limit is 7"):
        load_prompts(path, TOKENIZER, max_prompt_tokens=7, too_long="refuse")
    with pytest.raises(DataError, match=r"all 2 prompts are longer than data.max_prompt_tokens"):
        load_prompts(path, TOKENIZER, max_prompt_tokens=3)


def test_puzzles_become_prompts_that_open_the_think_block() -> None:
    problem = make(family("countdown"), seed=0, count=1)[0]
    (prompt,) = puzzle_prompts([problem], TOKENIZER)
    assert TOKENIZER.decode(prompt.tokens_T.tolist(), skip_special_tokens=False) == (
        f"<|user|> {problem.question} <|assistant|> <think>"
    )
    assert prompt.reference == {**problem.reference, "think": "open"}
    assert (prompt.id, prompt.family, prompt.text) == (problem.id, "countdown", problem.question)


def test_a_prompt_without_thinking_ends_with_a_closed_block_and_says_so_in_the_reference() -> None:
    (prompt,) = puzzle_prompts(make(family("running_sum"), seed=0, count=1), TOKENIZER)
    emptied = without_thinking(prompt, TOKENIZER)
    assert emptied.tokens_T.tolist() == [*prompt.tokens_T.tolist(), TOKENIZER.token_id("</think>")]
    assert emptied.reference["think"] == "empty"
    assert emptied.id == prompt.id


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "rows.jsonl holds no rows"),
        (b"\n\r\n", "rows.jsonl holds no rows"),
        (b'{"prompt": "caf\xe9", "answer": 1}\n', "rows.jsonl:1 is no JSON: .*0xe9"),
        (b'{"prompt": "sum 1", "answer": 1}\n\n{"prompt": "su', "rows.jsonl:3 is no JSON"),
        (b'[\n{"prompt": "sum 1", "answer": 1}\n]\n', "rows.jsonl:1 is no JSON: .*one JSON object per line"),
        (b'{"prompt": "\\ud800", "answer": 1}\n', "rows.jsonl:1 holds half of a surrogate pair"),
        (b'{"prompt": ' + b"[" * 100_000 + b"\n", "rows.jsonl:1 is no JSON: maximum recursion depth"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_prompts(path, TOKENIZER)


def test_lines_may_end_as_on_windows_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "sum 1", "answer": 1}\r\n{"prompt": "sum \\u0032", "answer": 2}\r\n')
    assert [prompt.text for prompt in load_prompts(path, TOKENIZER).prompts] == ["sum 1", "sum 2"]
