"""Networks that the libraries write in kernels of Metal: they answer on machines without it, in batches as alone."""

from pathlib import Path

import pytest
from models.tiny_models import build
from models.workshop import Workshop

from mlxk.adapters.mlx.loading.text_model import load_model

pytestmark = pytest.mark.mlx
SPARK = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "post_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0},
    "layer_rope_theta": [10000.0, 10000.0, 0],
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 32,
    "final_logit_softcapping": 30.0,
    "output_multiplier": 1.0,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_hidden_size": 32,
    "moe_intermediate_size": 32,
}


def test_muse_spark_of_mlx_lm_answers_in_batches_as_alone(tmp_path: Path) -> None:
    model = load_model(build(tmp_path / "m", "muse_spark", text_config=SPARK, audio_config={"out_hidden_size": 64}))
    prompts = ("Hello world! How are you today?", "The quick brown fox jumps over the lazy dog. " * 3, "1 2 3")
    workshop = Workshop(model)
    together = workshop.texts(*prompts)
    assert together == [Workshop(model).texts(each)[0] for each in prompts]
    assert len(set(together)) == len(prompts)
    assert not workshop.log.named("a batch failed and is rebuilt")
