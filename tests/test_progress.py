"""What a command shows while it works: a bar on a terminal, whole lines in a file or a job's log."""

import io
import threading
import time

from actors import answered
from actors.metrics_log import MetricsLog
from pipelines import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(interval_s, steps=4, pause_s=0.0):
    file = io.StringIO()
    with progress.Bar("rollout, round 0", steps, "example", file=file, interval_s=interval_s) as shown:
        for _ in range(steps):
            time.sleep(pause_s)
            shown.update()
    text = file.getvalue()
    assert not set(text) & set("\r\x1b\b")
    return text.splitlines()


def test_outside_of_a_terminal_a_line_at_the_start_and_the_end_and_one_an_interval():
    first, last = lines_of(60.0)
    assert first == "rollout, round 0: 0/4 examples (0%)"
    assert last == "rollout, round 0: 4/4 examples (100%), in 00:00"
    assert len(lines_of(0.0)) == 6
    assert 3 <= len(lines_of(0.05, steps=20, pause_s=0.01)) <= 7


def test_a_bar_that_continues_says_what_was_there_and_how_long_the_rest_takes():
    file = io.StringIO()
    shown = progress.Bar("train, round 0", 1000, "step", initial=500, file=file, interval_s=0.0)
    shown._began -= 100.0
    shown.show(750, "loss 0.5")
    assert file.getvalue().splitlines()[1] == "train, round 0: 750/1,000 steps (75%), in 01:40, about 01:40 left; loss 0.5"


def test_a_terminal_has_a_bar_with_the_figures_beside_it():
    file = Terminal()
    with progress.Bar("train, round 0", 4, "step", file=file) as shown:
        shown.show(2, "loss 0.5")
    assert "\r" in file.getvalue()
    assert "50% |" in file.getvalue()
    assert "2/4 [" in file.getvalue()
    assert "loss 0.5" in file.getvalue()


def test_many_threads_count_every_one():
    shown = progress.Bar("open videos", 4000, "video", file=io.StringIO())
    threads = [threading.Thread(target=lambda: [shown.update() for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown.n == 4000


def test_training_shows_the_loss_of_its_last_step_and_what_was_measured_last(tmp_path, capsys):
    log = MetricsLog(tmp_path)
    log.progress("train", 9, 10, {"loss": 9.0})  # of a training that was stopped
    log.rewind(0)
    with progress.follow_steps(0, tmp_path):
        time.sleep(0.7)
        assert capsys.readouterr().err == "", "what another training said is not shown"
        log.progress("reference", 3, 3)
        time.sleep(0.7)
        log.measurement(
            {"step": 1, "loss": 0.9, "learning_rate": 1e-5, "chosen_logp": -0.5, "rejected_logp": -1.25, "accuracy": 0.75}
        )
        log.step(2, 4, {"loss": 0.6931, "grad_norm": None})
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("reference, round 0: 3/3 pairs (100%)")
    assert said[-1].startswith("train, round 0: 2/4 steps (50%)")
    assert said[-1].endswith("; loss 0.6931  lr 1e-05  chosen -0.500  rejected -1.250  accuracy 75%")


def test_a_wait_is_said_at_its_start_and_its_end(capsys):
    with progress.waiting("start endpoint") as on_wait:
        on_wait(1.0, "")
    assert capsys.readouterr().err == "start endpoint: waiting\nstart endpoint: done in 00:00\n"


def test_a_wait_says_what_it_waits_for(capsys, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 0)
    with progress.waiting("start base") as on_wait:
        on_wait(1.0, "LLMServer")
        on_wait(2.0, "")
    said = capsys.readouterr().err.splitlines()
    assert said[1:3] == ["start base: waiting for 00:00; not there yet: LLMServer", "start base: waiting for 00:00"]


def test_counts_are_said_with_the_largest_first():
    assert progress.counts({"a": 1, "b": 1200, "c": 0}) == "b 1,200, a 1"
    assert progress.counts({}) == "none"


def test_the_answered_examples_of_chunks_at_work_are_counted_and_forgotten(tmp_path):
    one, two = answered.Answered(tmp_path, 0), answered.Answered(tmp_path, 1)
    assert answered.num_answered(tmp_path / "none") == 0
    one.one()
    two.one()
    assert answered.num_answered(tmp_path) == 2
    one.over()
    one.one()
    assert answered.num_answered(tmp_path) == 1
    (tmp_path / ".answered-000007").write_text("torn")
    assert answered.num_answered(tmp_path) == 1
    answered.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
