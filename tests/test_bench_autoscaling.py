"""The bench of an autoscaled job, as far as it needs no cluster."""

from bench.autoscaling import launcher_config, plot
from cluster.launcher import limits


def test_the_cluster_grows_from_a_head_of_one_cpu():
    grown = limits(launcher_config(6380, 3))
    assert (grown.num_cpus, grown.max_num_cpus, grown.max_num_nodes) == (1, 1 + 3 * 2, 4)
    assert launcher_config(6380, 3)["provider"]["gcs_address"].endswith(":6380")


def test_the_plot_is_drawn(tmp_path):
    stages = {"responses": [5, 40], "pairs": [40, 41], "train": [41, 90]}
    plot({"nodes": [[0, 0], [12, 2], [110, 0], [115, 0]], "stages": stages, "job_s": 95, "num_nodes": 2}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
