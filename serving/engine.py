"""What a replica does differently from Ray's `LLMServer`, so that it starts with fewer processes.

Importing vLLM costs 14 s of CPU time in every process. For one CPU engine, Ray starts three processes in addition to the replica:
a task that downloads model files, vLLM's engine core, and a worker below that. A folder that every node sees needs no download,
and a single device can be driven from within the engine core.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm.deployment import LLMServer

from cluster.engines import SHARED_GPU, require_plugin
from cluster.node_lock import alone
from serving import serve_log
from serving.relay import answered
from serving.root_cause import POINTS_AT_IT, own_log, root_cause
from vidalign.errors import ModelError
from vidalign.model.folder import stage_model
from vidalign.storage import FOLDER
from vidalign.stored import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ray.serve.llm import LLMConfig
    from starlette.types import ASGIApp, Message

    from serving.gates import GateOptions


LOOK_S, LAST_WORDS_S = 0.5, 0.3  # between two looks at the engine; for what its requests are told when it is gone


class LocalCheckpoint(CallbackBase):
    """Skips the download of model files, which are in a folder that every node sees, or are staged here from a store."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False
        folder = self.kwargs["folder"]
        found = await asyncio.to_thread(stage_model, self.kwargs["model_path"], folder)
        if found != folder:
            raise ModelError(
                f"{shown(folder)} is mirrored at {found} on this node, and at {folder} on the driver's; set {FOLDER} to one path on "
                "all nodes"
            )


class LeanEngine(VLLMEngine):
    """Runs a single CPU device inside vLLM's engine core instead of in its own process.

    Engines that share a GPU start one after the other: vLLM measures how much memory is free before and after a trial run, and
    another engine's weights, loaded in between, would count as its own.
    """

    async def start(self) -> None:
        """Start the engine, once no other that could share its GPU is starting on this node."""
        require_plugin()
        if os.environ.get(SHARED_GPU) != "1":
            await self._start()
            return
        async with alone(pathlib.Path(tempfile.gettempdir()) / f"vidalign-engine-start-{os.getuid()}.lock"):
            await self._start()

    async def _start(self) -> None:
        """Start the engine; what its process failed with is the reason, not that it failed."""
        try:
            await super().start()
        except RuntimeError as error:
            cause = root_cause(own_log()) if POINTS_AT_IT in str(error) else ""
            if not cause:
                raise
            raise RuntimeError(f"its engine did not start: {cause}") from error

    @property
    def client(self) -> Any:
        """vLLM's engine client."""
        return self._engine_client

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        from vllm.plugins import load_general_plugins

        # With GPUs, Ray makes the configuration, and so loads vLLM's plugins, in a task of its own; but media are read here.
        load_general_plugins()
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        parallel = config.parallel_config
        # Ray sets "mp" for every CPU engine. vLLM prefers it only for pinning OpenMP threads to cores, which is switched off.
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config


class PolicyServer(LLMServer):
    """The server of one policy: reached over HTTP if it is the only one, else through `PolicyIngress`."""

    _default_engine_cls = LeanEngine

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, options: GateOptions | None = None, **kwargs: Any
    ) -> None:
        """`options` are those of its gate, if this server receives HTTP requests itself."""
        from serving.engine_app import EngineApp

        self._options = options
        serve_log.keep()
        await super().__init__(llm_config, **kwargs)
        assert isinstance(self.engine, LeanEngine)
        client = self.engine.client
        if llm_config.deployment_config["autoscaling_config"]["max_replicas"] > 1:
            self._leaving = asyncio.create_task(self._leave_with(client))
        self._app = EngineApp(await self.engine.build_asgi_app(), client, client.model_config.max_model_len)

    async def _leave_with(self, client: Any) -> None:
        """End this process soon after its engine, where there are other replicas.

        It would have the fewest requests in flight, and so get all of theirs until Serve's next look at it.
        """
        while not client.errored:
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve if this class is wrapped as an ingress."""
        assert self._options is not None
        models = self._options.models
        catalog = self._options.catalog(lambda: dict.fromkeys(models, self._app.works))
        return self._options.gate(self._app, catalog)

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """Answer a relayed request."""
        async for messages in answered(self._app, scope, body):
            yield messages

    async def load_adapter(self, name: str, folder: str) -> str:
        """Load an adapter before anybody asks for it; why it cannot be, or ""."""
        from serving.engine_adapters import AdapterError

        assert self._app.adapters is not None
        try:
            await self._app.adapters.use(name, folder)
        except AdapterError as error:
            return str(error)
        return ""

    async def alive(self) -> bool:
        """Whether the engine can take requests."""
        return self._app.works
