"""Models as vLLM 0.32 has them, corrected. `serving.video_loader.register` puts them into vLLM's registry by name."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import llava_onevision


class LlavaOnevisionForConditionalGeneration(llava_onevision.LlavaOnevisionForConditionalGeneration):
    """Takes videos of unequal length in one step: vLLM gives their embeddings as [1, T, D] each, which its engine refuses."""

    def _process_video_pixels(self, inputs: Any) -> Any:
        made = super()._process_video_pixels(inputs)
        return [video.flatten(0, 1) for video in made] if isinstance(made, list) else made
