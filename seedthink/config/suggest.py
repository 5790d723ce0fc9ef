"""Naming the key that was meant: spelled nearly so, standing at another level, or called otherwise elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# What other trainers call our keys. They are suggested, never accepted: two names for one key would hide mistakes.
KNOWN_ELSEWHERE = {
    "learning_rate": "lr",
    "n": "group_size",
    "num_generations": "group_size",
    "n_samples_per_prompt": "group_size",
    "rollout_n": "group_size",
    "max_new_tokens": "max_tokens",
    "max_response_length": "max_tokens",
    "max_completion_length": "max_tokens",
    "response_length": "max_tokens",
    "max_prompt_length": "max_prompt_tokens",
    "train_batch_size": "prompts_per_step",
    "rollout_batch_size": "prompts_per_step",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "total_training_steps": "steps",
    "max_steps": "steps",
    "max_grad_norm": "grad_clip",
    "clip_grad": "grad_clip",
    "adv_estimator": "preset",
    "test_freq": "every_steps",
    "save_freq": "every_steps",
    "save_steps": "every_steps",
    "eval_steps": "every_steps",
    "micro_batch_size": "micro_batch_tokens",
    "gpu_memory_utilization": "kv_memory_mib",
    "model_name_or_path": "path",
    "train_files": "train",
    "val_files": "eval",
    "output_dir": "folder",
    "experiment_name": "name",
    "reward_fn": "function",
    "reward_funcs": "function",
}


def nearest(path: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` known dotted keys that `path` was probably meant to be, best first.

    Tried in order: the same but for dots and dashes, the same last name at another level, a near spelling in the same
    section, the name other trainers use, a near spelling anywhere, a near spelling of the whole path.
    """
    known = list(known)
    section, _, leaf = path.rpartition(".")
    leaf = leaf.replace("-", "_")
    leaves: dict[str, list[str]] = {}
    for key in known:
        leaves.setdefault(key.rpartition(".")[2], []).append(key)
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    elsewhere = KNOWN_ELSEWHERE.get(leaf, "")
    in_place = [siblings[elsewhere]] if elsewhere in siblings else []
    close = get_close_matches(leaf, siblings, 1, 0.7)
    anywhere = get_close_matches(leaf, leaves, 1, 0.7)
    flat = path.replace("-", "_").replace(".", "_")
    candidates = [
        [key for key in known if key.replace(".", "_") == flat],
        leaves.get(leaf, []),
        in_place,
        [siblings[name] for name in close],
        leaves.get(elsewhere, []),
        [key for name in anywhere for key in leaves[name]],
        get_close_matches(path, known, 1, 0.8),
    ]
    found = next((keys for keys in candidates if keys), [])
    ranked = sorted(found, key=lambda key: key.rpartition(".")[0] not in (section, ""))
    return ranked[:limit]


def nearest_section(name: str, known: Iterable[str]) -> list[str]:
    """Return the sections that `name` was probably meant to be: a near spelling, or one that contains it."""
    known = list(known)
    return get_close_matches(name, known, 2, 0.7) or [
        section for section in known if name in section or section in name
    ]


def did_you_mean(path: str, known: Iterable[str]) -> str:
    """Return "; did you mean a or b?", or "" where nothing is near."""
    found = nearest(path, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""
