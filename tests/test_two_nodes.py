"""Two nodes of one cluster, one of which does not see the videos: it has another file system mounted over their folder."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cluster.preflight import nodes_checked, wanted
from vidalign.errors import ClusterError
from vidalign.types import FrameSpec

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare"),
]
SPEC = FrameSpec(num_frames=4)


@pytest.fixture(scope="module")
def videos(shapes) -> list[str]:
    return sorted(str(path) for path in (shapes / "videos").glob("*.mp4") if path.stem not in ("empty", "text"))[:24]


@pytest.fixture(scope="module")
def two_nodes(videos):
    """Ray is connected to a head node with two CPUs, beside which is a node that sees no videos."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    start = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=2 --block"
    command = f"mount -t tmpfs none {pathlib.Path(videos[0]).parent} && exec {start}"
    blind = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert time.monotonic() < deadline, "the second node did not come"
            time.sleep(0.2)
        yield
    finally:
        ray.shutdown()
        os.killpg(blind.pid, signal.SIGTERM)
        blind.wait(60)
        cluster.shutdown()


def test_the_node_is_refused_by_name_before_anything_starts(two_nodes, videos, tmp_path):
    has = wanted({"run_dir": tmp_path}, videos=videos)
    with pytest.raises(ClusterError, match=r"^node \S+ does not see the video \S+\.mp4; .* Nothing was started$"):
        enter(has)


def enter(has) -> None:
    with nodes_checked(has, warn=print):
        pass


def test_no_video_is_lost_to_a_node_that_does_not_see_it(two_nodes, videos, tmp_path):
    from actors.decoder import decoded_videos

    rows = list(decoded_videos(videos, SPEC, str(tmp_path / "frames"), num_decoders=3, num_cpus=1))
    assert sorted(row.video for row in rows) == videos
    assert {row.reason for row in rows} == {""}
