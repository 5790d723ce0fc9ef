"""Commands that read: report, samples, compare, config, checkpoint, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from seedthink.cli import doctor
from seedthink.cli.config import command_of
from seedthink.cli.main import main
from seedthink.config import COMMANDS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
from synthetic import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "vapo", steps=4, samples_at=(1, 4))


def test_report_writes_the_page_and_names_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html") and (run / "report.html").stat().st_size > 20_000


def test_samples_are_filtered_and_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", str(run), "--reward-below", "0", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert (
        text.count("reward -1") == 2 and text.endswith("2 shown, 4 more (--limit 0 shows all)\n") and "step 4" in text
    )
    assert main(["samples", str(run), "--step", "1", "--json", "--limit", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 16 and {row["step"] for row in rows} == {1}
    assert main(["samples", str(run), "--text", "nowhere"]) == 0
    assert capsys.readouterr().out == "none passes the filters\n"


def test_samples_of_a_step_that_is_not_stored_are_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", str(run), "--step", "2"]) == 2
    assert "stored are 1, 4" in capsys.readouterr().err


def test_compare_prints_a_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "grpo", steps=4, **{"algorithm.preset": "grpo"})
    assert main(["compare", str(run), str(other), "--settings", "--html", str(tmp_path / "c.html")]) == 0
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.startswith("run   made by  before") and first.startswith("vapo  rl vapo") and second.startswith("grpo")
    assert "algorithm.preset: vapo | grpo" in rest and (tmp_path / "c.html").exists()


def test_config_init_check_show_and_explain(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main(["config", "init", command]) == 0
        (in_tmp / f"{command}.toml").write_text(capsys.readouterr().out)
        assert command_of(f"{command}.toml") == command
    assert main(["config", "check", "rl.toml", "sft.toml"]) == 0
    assert "sft.toml: fine for seedthink sft" in capsys.readouterr().out
    assert main(["config", "show", "rl.toml"]) == 0
    assert json.loads(capsys.readouterr().out)["algorithm"]["preset"] == "vapo"
    assert main(["config", "explain", "rollout.group-size"]) == 0
    text = capsys.readouterr().out
    assert "Answers sampled per problem." in text and "rollout/groups_all_equal" in text
    assert main(["config", "explain", "rollout.groupsize"]) == 2
    assert "did you mean rollout.group_size?" in capsys.readouterr().err
    (in_tmp / "bad.toml").write_text("[rollout]\ngroup_size = 0\n")
    assert main(["config", "check", "bad.toml"]) == 2
    assert capsys.readouterr().err.startswith("seedthink: bad.toml: rollout.group_size = 0 is not allowed")


def test_recipes_of_the_project_are_fine(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = [str(path) for path in sorted((root / "recipes").glob("*/*.toml"))]
    assert recipes and main(["config", "check", *recipes]) == 0


def test_doctor_finds_what_it_needs_and_its_json_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "packages", "native library", "gpu", "disk", "sandbox"} <= {entry["name"] for entry in findings}
    assert all(entry["says"] for entry in findings)


def test_doctor_lists_mpi4py_with_its_version_or_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    present = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "4.1.0" if name == "mpi4py" else present(name))
    assert "mpi4py 4.1.0" in doctor.extras().says
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name == "mpi4py" else present(name))
    assert "runs that mpirun starts: pip install 'seedthink[mpi]'" in doctor.extras().fix


def test_a_missing_package_fails_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name == "pyarrow" else present(name))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "fail  packages" in text and "-> pip install pyarrow" in text and text.endswith("not ready: packages\n")


def test_a_library_that_does_not_load_fails_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_build_info", lambda: (None, "undefined symbol"))
    finding = doctor.native()
    assert finding.status == "fail" and finding.says == "undefined symbol" and "pip install -e ." in finding.fix
    assert doctor.gpu().status == "note"


def test_checkpoints_are_listed_verified_and_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from seedthink.checkpoint.store import CheckpointStore

    assert main(["checkpoint", "list", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    path = CheckpointStore(tmp_path / "checkpoints").save(7, {"policy": {"weight.a": torch.ones(3)}}, {})
    assert main(["checkpoint", "list", str(tmp_path)]) == main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("step-00000007") == 2
    data = bytearray((path / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "policy.safetensors").write_bytes(data)
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    assert "bytes have changed" in capsys.readouterr().out


def test_an_exported_checkpoint_has_the_weights_of_its_step(tmp_path: Path) -> None:
    import torch
    from test_recipe_commands import MOE

    from seedthink.checkpoint.store import CheckpointStore
    from seedthink.engine.model_io import load_model, save_model
    from seedthink.models.config import ModelConfig
    from seedthink.models.decoder import Transformer

    model = Transformer(ModelConfig.from_hf(MOE | {"num_hidden_layers": 1, "hidden_size": 64}))
    model.init_weights(0)
    save_model(model, tmp_path / "start")
    (tmp_path / "resolved.json").write_text(json.dumps({"model": {"path": str(tmp_path / "start")}}))
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (1, 2):
        weights = {f"weight.{name}": p.detach() + step for name, p in model.named_parameters()}
        store.save(step, {"policy": weights}, {})
    for step, arguments in ((1, ["--step", "1"]), (2, [])):
        assert main(["checkpoint", "export", str(tmp_path), str(tmp_path / f"out{step}"), *arguments]) == 0
        exported = load_model(tmp_path / f"out{step}")
        for (name, ours), theirs in zip(model.named_parameters(), exported.parameters(), strict=True):
            assert torch.equal(ours + step, theirs), name
    assert main(["checkpoint", "export", str(tmp_path), str(tmp_path / "x"), "--step", "9"]) == 2


def test_a_checkpoint_without_the_runs_settings_is_told_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from seedthink.checkpoint.store import CheckpointStore

    CheckpointStore(tmp_path / "checkpoints").save(7, {"policy": {"weight.a": torch.ones(3)}}, {})
    for content in (None, "[]", "{}"):
        if content is not None:
            (tmp_path / "resolved.json").write_text(content)
        assert main(["checkpoint", "export", str(tmp_path), str(tmp_path / "out")]) == 2
        assert "resolved.json cannot be read" in capsys.readouterr().err
