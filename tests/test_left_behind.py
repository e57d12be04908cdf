"""A run leaves the system's folder for temporary files as it found it."""

from cluster.session import forget_session


def test_a_session_that_is_forgotten_takes_its_link_with_it_and_no_other(tmp_path):
    for name in ("session_1", "session_2"):
        (tmp_path / name / "logs").mkdir(parents=True)
    latest = tmp_path / "session_latest"
    latest.symlink_to(tmp_path / "session_2")
    forget_session(tmp_path / "session_1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_2", "session_latest"]
    forget_session(tmp_path / "session_2")
    assert list(tmp_path.iterdir()) == []
