"""Health notes."""

from __future__ import annotations

from seedthink.telemetry.health import notes, worst


def test_a_healthy_step_has_no_notes() -> None:
    assert (
        notes({"step": 3, "actor/entropy": 0.7, "response_length/clip_ratio": 0.01, "rollout/logp_gap_max": 0.0}) == []
    )


def test_a_note_gives_the_number_and_the_setting_to_look_at() -> None:
    (note,) = notes({"step": 3, "response_length/clip_ratio": 0.114})
    assert note.text == "truncated 11 % of answers at the limit in rollout.max_tokens" and note.step == 3


def test_entropy_is_judged_against_the_start_of_the_run() -> None:
    assert notes({"actor/entropy": 0.05}, first={"actor/entropy": 0.06}) == []
    assert "from 2 to 0.05" in notes({"actor/entropy": 0.05}, first={"actor/entropy": 2.0})[0].text


def test_exact_mode_tolerates_no_gap_at_all() -> None:
    tiny = {"rollout/logp_gap_max": 1e-7}
    assert notes(tiny) == []
    assert "promises 0 bits" in notes(tiny, exact=True)[0].text
    assert len(notes({"rollout/logp_gap_max": 0.5}, exact=True)) == 1


def test_a_run_names_each_trouble_once_and_counts_its_steps() -> None:
    steps = [{"step": n, "response_length/clip_ratio": 0.2, "verifier/errors": 0.5 * (n == 3)} for n in (1, 2, 3)]
    found = worst(steps)
    assert [(note.metric, note.step, count) for note, count in found] == [
        ("response_length/clip_ratio", 3, 3),
        ("verifier/errors", 3, 1),
    ]
