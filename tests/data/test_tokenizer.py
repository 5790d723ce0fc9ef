"""The tokenizer gives what transformers gives: ids, text, chat rendering; and its folder survives a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import DataError

TEXTS = [
    "Hello world, 3 + 4 = 7.",
    "  two spaces\n\nand lines\t.",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "<think>why</think> so<|im_end|>",
    "",
]
CHAT = [
    {"role": "system", "content": "Be  brief."},
    {"role": "user", "content": "What is <2>?\n"},
    {"role": "assistant", "content": "<think>hm</think>4"},
    {"role": "user", "content": "Sure?"},
]
# Trimming, loop variables, loop controls, tojson, string methods, a generation block: what published templates use.
TEMPLATE = """{%- if messages[0].role == 'system' -%}
    {{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {% if message.role == 'assistant' %}
        {%- generation %}{{ message.content.split('</think>')[-1] | trim }}{% endgeneration %}
    {% else %}
        {{- message.content | trim }}
    {% endif %}
    {{- '<|im_end|>\\n' }}{% if loop.last %}{{ {'turns': loop.index, 'note': 'a<b'} | tojson }}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + (think | default('<think>')) }}{% endif %}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer laid out as Qwen's: added think tags, special turn tokens, and a BOS."""
    path = tmp_path_factory.mktemp("bpe")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(["what is the sum of three and four, hello world"] * 20, trainer)
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
    )
    backend.save(str(path / "tokenizer.json"))
    extra = backend.get_vocab_size()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "added_tokens_decoder": {str(extra): {"content": "<tool>", "special": False, "normalized": False}},
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    stops = [backend.token_to_id("<|im_end|>"), backend.token_to_id("<|bos|>")]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return path


def test_ids_text_and_chat_equal_those_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    for text in [*TEXTS, "a <tool> b"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=True) == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.encode_all(TEXTS) == [ours.encode(text) for text in TEXTS]
    for open_turn in (True, False):
        expected = theirs.apply_chat_template(CHAT, add_generation_prompt=open_turn, tokenize=False)
        assert ours.render_chat(CHAT, add_generation_prompt=open_turn) == expected
        ids = theirs.apply_chat_template(CHAT, add_generation_prompt=open_turn, return_dict=False)
        assert ours.apply_chat(CHAT, open_turn) == ids
    switched = theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False, think="")
    assert ours.render_chat(CHAT, think="") == switched
    assert switched.endswith("assistant\n")


def test_stop_tokens_are_the_tokenizers_then_the_generation_configs(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_token_ids == (tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|bos|>"))


def test_save_writes_the_files_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    Tokenizer.load(folder).save(tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_the_puzzle_tokenizer_is_one_that_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    built = build_puzzle_tokenizer()
    built.save(tmp_path)
    loaded, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": "make 14 from 3 4 2"}]
    ids = theirs.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert built.apply_chat(message) == loaded.apply_chat(message) == ids
    assert len(ids) == 9
    response = "2 : 3 4 + 7 9 < 14 = 7 * 2 </think> ( 3 + 4 ) * 2"
    tokens = built.encode(response)
    assert tokens == theirs.encode(response)
    assert built.decode([*tokens, *built.eos_token_ids]) == response
    assert theirs.decode([*tokens, theirs.eos_token_id], skip_special_tokens=True) == response
    assert built.encode("(3+4)*2") == built.encode("( 3 + 4 ) * 2")
    assert built.vocab_size <= 128


def test_the_puzzle_template_refuses_a_role_it_does_not_know() -> None:
    with pytest.raises(DataError, match=r"roles system.*knows the roles user and assistant"):
        build_puzzle_tokenizer().apply_chat([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for i in range(10**9) %}{% endfor %}", "{{"],
)
def test_a_hostile_or_broken_template_is_refused(attack: str) -> None:
    files = {**build_puzzle_tokenizer().files, "chat_template.jinja": attack.encode()}
    tokenizer = Tokenizer(files, where="hostile")
    with pytest.raises(DataError, match="chat template"):
        tokenizer.apply_chat([{"role": "user", "content": "x"}])


def test_a_folder_without_a_usable_tokenizer_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)
    build_puzzle_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json holds a list"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_template_says_so_when_a_chat_is_rendered() -> None:
    files = {name: content for name, content in build_puzzle_tokenizer().files.items() if "template" not in name}
    with pytest.raises(DataError, match="has no chat template"):
        Tokenizer(files, where="plain").apply_chat([{"role": "user", "content": "x"}])


def test_a_folder_that_does_not_exist_is_not_blamed_on_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model folder .*nowhere does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
