"""An export never fails after training, and leaves a whole folder or the older one."""

import json
import pathlib
import shutil

import pytest
import tiny_families
import torch

from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.model import checkpoint, loading, rendering
from vidalign.model.clip_check import black
from vidalign.model.policy import load_policy
from vidalign.types import FrameSpec


@pytest.fixture
def base(tmp_path):
    """A folder of its own: what is cached by path must not be changed."""
    tiny_families.WRITERS["qwen2_5_vl"](tmp_path / "base")
    return tmp_path / "base"


def export(base, folder, **options):
    model = load_policy(ModelConfig(path=str(base), dtype="float32"))
    spec = {"frame_spec": FrameSpec(), "prompt": "{question}", "zero_stage": 2}
    checkpoint.export_policy(model, folder, base=str(base), parent="v", **spec, **options)
    return model


def with_generation(folder, **values):
    file = folder / "generation_config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | values))
    return raw | values


def test_a_generation_config_that_contradicts_itself_is_repaired(base, tmp_path):
    with_generation(base, do_sample=False, temperature=0.7, top_p=0.8)
    [said] = checkpoint.generation_faults(base)
    assert "gets do_sample: true in the exported model" in said
    model = export(base, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["top_p"]) == (True, 0.7, 0.8)
    assert model.generation_config.do_sample is False  # the model that is trained stays as it is
    assert checkpoint.generation_faults(tmp_path / "model") == []


def test_one_that_sampling_does_not_mend_is_copied(base, tmp_path):
    raw = with_generation(base, early_stopping=True, num_beams=1)
    [said] = checkpoint.generation_faults(base)
    assert "is copied as it is" in said
    export(base, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text()) == raw


def test_one_that_cannot_be_read_is_refused_beforehand(base):
    with_generation(base, num_return_sequences=3)
    with pytest.raises(ModelError, match=r"generation_config.json cannot be read: .* correct that file"):
        checkpoint.generation_faults(base)


def test_processor_files_of_the_older_layout(base, tmp_path):
    raw = json.loads((base / "processor_config.json").read_text())
    (base / "processor_config.json").unlink()
    images, videos = raw.pop("image_processor"), raw.pop("video_processor")
    named = {"processor_class": raw["processor_class"]}
    (base / "preprocessor_config.json").write_text(json.dumps(images | named))
    (base / "video_preprocessor_config.json").write_text(json.dumps(videos | named))
    export(base, tmp_path / "model")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()
    ours, theirs = (rendering.load_processor(str(folder)) for folder in (tmp_path / "model", base))
    assert ours.video_processor.to_dict() == theirs.video_processor.to_dict()
    shown = [rendering.render_prompt(processor, "What moves?", black(4, 64, 64)) for processor in (ours, theirs)]
    assert torch.equal(shown[0].tokens["input_ids"], shown[1].tokens["input_ids"])
    assert all(torch.equal(shown[0].vision[name], value) for name, value in shown[1].vision.items())


def test_a_tied_output_layer(base, tmp_path):
    import safetensors.torch

    raw = json.loads((base / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = raw["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(raw))
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    export(base, tmp_path / "model")
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    model = loading.load(str(tmp_path / "model"), torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_death_between_the_two_renames(base, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    export(base, folder)
    (folder / "of an older export").touch()
    plain = pathlib.Path.rename

    def dies(self, target):
        if self.name == ".model.new":
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            export(base, folder)
    assert not folder.exists()
    assert checkpoint.read_card(folder)["parent"] == "v"  # whoever looks for the export finds the new one
    assert not (folder / "of an older export").exists()
    loading.load(str(folder), torch.float32)
    export(base, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_half_an_export_is_no_export(base, tmp_path):
    made = tmp_path / ".model.new"
    shutil.copytree(base, made)  # whole, but without its card
    assert checkpoint.read_card(tmp_path / "model") is None
    assert made.exists()
