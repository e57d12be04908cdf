"""The most bytes of tensors that two optimizer steps of one CPU rank hold, by case, as a process of its own.

    python tests/tracked_steps.py CASES FOLDER

CASES is a JSON object {name: [dtype, tokens of the prompt, options of `train`]}. Writes a model into FOLDER and prints {name: bytes}.
Every tensor that an operation returns is counted by its storage, from then until nothing refers to it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from typing import Any

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from actors.rank import Rank
from vidalign.config.training import TrainConfig
from vidalign.model.batch import Batch, Prompt, collate
from vidalign.model.positions import correct_positions

RESPONSES = list(range(10, 26)), list(range(30, 46))
TEXT = {
    "vocab_size": 2048,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
VISION = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 384}


class Tracked(TorchDispatchMode):
    """Counts bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.device.type == "cpu":
                self._see(each.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.live += self.known[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self.known.pop(key, 0)


def made(dtype: str) -> Any:
    config = Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=2,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, dtype))
    correct_positions(model)
    return model


def batch(num_tokens: int) -> Batch:
    ids = torch.randint(10, 2048, (num_tokens,))
    prompt = Prompt(tokens={"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)}, vision={})
    return collate([(prompt, response) for response in RESPONSES], pad_id=0)


def peak(dtype: str, num_tokens: int, options: dict[str, Any]) -> int:
    """Of the second step: in the first one DeepSpeed moves and allocates what then stays."""
    train = TrainConfig(**options)
    with Tracked() as tracked:
        rank = Rank(made(dtype), train, dtype=dtype, num_steps=9, packed=False, compares=False, device=torch.device("cpu"))
        for _ in range(2):
            gc.collect()
            tracked.peak = tracked.live
            rank.train()
            for number in range(train.batch_size):
                loss = -rank.logps(batch(num_tokens)).logps.sum() / 100
                rank.backward(loss, last=number == train.batch_size - 1)
            del loss
            rank.step()
    return tracked.peak


def main(cases: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    made("float32").save_pretrained(f"{folder}/model")
    print(json.dumps({name: peak(*case) for name, case in json.loads(cases).items()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
