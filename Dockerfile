# docker build --target cpu -t vidalign:cpu .        everything on CPUs, as the tests and the demo run
# docker build --target gpu -t vidalign:gpu .        CUDA builds of PyTorch and vLLM; the host has NVIDIA driver 580 or newer
# docker run --shm-size=8g [--gpus all] -v /data:/data vidalign:gpu vidalign align /data/align.yaml
#
# The packages are a layer of their own, which a change of the project's own files does not build again.

FROM python:3.11-slim-bookworm AS base
# Ray, DeepSpeed and Triton compile small parts at their first start; the slim image brings Python's own headers.
# KubeRay asks serving pods with wget whether they are ready.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make rsync wget \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/vidalign
COPY requirements ./requirements

FROM base AS cpu-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url "$TORCH_INDEX" -r requirements/torch-cpu.lock \
    && pip install --no-deps -r requirements/cpu.lock

FROM base AS gpu-packages
RUN pip install --no-deps -r requirements/gpu.lock

FROM cpu-packages AS cpu
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && vidalign --help > /dev/null
CMD ["vidalign", "--help"]

FROM gpu-packages AS gpu
COPY . .
RUN pip install --no-deps --no-build-isolation -e . && vidalign --help > /dev/null
CMD ["vidalign", "--help"]
