"""Training checkpoints: complete or absent, whatever kills the writer."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from seedthink.checkpoint import CheckpointStore, store
from seedthink.errors import DataError, RunError


def groups(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "policy": {"weight": torch.full((4, 3), float(step)), "half": torch.tensor([1.5, step], dtype=torch.bfloat16)},
        "policy_optimizer": {"step": torch.tensor(float(step)), "updates": torch.tensor(step)},
    }


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        made.save(step, groups(step), {"cursor": [step, None], "name": "run"})
    return made


def names(checkpoints: CheckpointStore) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(checkpoints: CheckpointStore) -> None:
    newest = checkpoints.latest()
    assert newest is not None and newest.name == "step-00000002"
    found = checkpoints.load(newest)
    assert found.step == 2 and found.extra == {"cursor": [2, None], "name": "run"}
    for group, tensors in groups(2).items():
        assert found.groups[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.groups[group][name].dtype == tensor.dtype and torch.equal(found.groups[group][name], tensor)


def test_views_and_aliases_are_stored_as_tensors_of_their_own(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "turned": base.T, "row": base[1], "again": base, "none": base[:0]}
    found = CheckpointStore(tmp_path).load(CheckpointStore(tmp_path).save(0, {"g": tensors}, {}))
    assert all(torch.equal(found.groups["g"][name], tensor) for name, tensor in tensors.items())


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent").latest() is None


def test_a_step_saved_again_replaces_the_first(checkpoints: CheckpointStore) -> None:
    path = checkpoints.save(2, groups(7), {})
    assert checkpoints.load(path).groups["policy"]["weight"][0, 0] == 7.0
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("manifest.json", Path.unlink, "not written to the end"),
        ("manifest.json", _cut, "cannot be read"),
        ("policy.safetensors", Path.unlink, "is missing"),
        ("policy.safetensors", _cut, "cut short"),
        ("policy.safetensors", _flip, "differs from its SHA-256"),
        ("extra.json", _flip, "differs from its SHA-256"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    checkpoints: CheckpointStore, file: str, damage: object, why: str
) -> None:
    broken = checkpoints.folder / "step-00000002"
    damage(broken / file)
    with pytest.warns(RuntimeWarning, match=f"passed over: .*step-00000002.*{why}"):
        newest = checkpoints.latest()
    assert newest is not None and newest.name == "step-00000001"
    with pytest.raises(DataError, match=why):
        checkpoints.load(broken)


def test_a_manifest_of_another_format_says_so(checkpoints: CheckpointStore) -> None:
    manifest = checkpoints.folder / "step-00000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
    with pytest.raises(DataError, match="format 9"):
        checkpoints.load(manifest.parent)


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_what_is_needed(
    checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write_tensors

    def write_until_full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if path.name.startswith("policy_optimizer"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, tensors)

    monkeypatch.setattr(store, "write_tensors", write_until_full)
    with pytest.raises(RunError, match=r"step-00000003: .*No space left.*It needs 0\.00 MB, and [\d.]+ [GM]B are free"):
        checkpoints.save(3, groups(3), {})
    with pytest.raises(RunError, match="step-00000002"):
        checkpoints.save(2, groups(9), {})
    assert names(checkpoints) == ["step-00000001", "step-00000002"]
    newest = checkpoints.latest()
    assert newest is not None and checkpoints.load(newest).groups["policy"]["weight"][0, 0] == 2.0


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save(1, groups(1), {})


def test_state_that_is_no_json_is_refused_before_anything_is_written(checkpoints: CheckpointStore) -> None:
    with pytest.raises(TypeError):
        checkpoints.save(3, groups(3), {"tensor": torch.zeros(1)})
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def test_prune_keeps_the_newest_complete_ones(checkpoints: CheckpointStore) -> None:
    for step in (3, 4):
        checkpoints.save(step, groups(step), {})
    (checkpoints.folder / "step-00000004" / "manifest.json").unlink()
    assert [path.name for path in checkpoints.prune(keep=2)] == ["step-00000001"]
    assert names(checkpoints) == ["step-00000002", "step-00000003", "step-00000004"]
    assert checkpoints.prune(keep=5) == []


_WRITER = """
import sys, time, torch
from seedthink.checkpoint import CheckpointStore, store
write = store.write_tensors
def write_slowly(path, tensors):
    write(path, tensors)
    if path.parent.name.startswith(".step-00000003"):
        print("in the middle", flush=True)
        time.sleep(60)
store.write_tensors = write_slowly
CheckpointStore(sys.argv[1]).save(3, {"policy": {"w": torch.ones(1000)}, "critic": {"w": torch.ones(1000)}}, {})
"""


def test_kill_dash_nine_during_a_save_loses_only_that_save(checkpoints: CheckpointStore) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(checkpoints.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "in the middle\n"
        (abandoned,) = checkpoints.folder.glob(".step-*")
        checkpoints.save(2, groups(2), {})
        assert abandoned.exists()  # its writer is alive
    finally:
        writer.kill()
        writer.communicate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = checkpoints.latest()
    assert newest is not None and checkpoints.load(newest).step == 2
    checkpoints.save(4, groups(4), {})
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000004"]
