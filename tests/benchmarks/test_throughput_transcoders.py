"""The throughput of transcoders, small."""

import json

import pytest
import torch

from benchmarks.throughput_transcoders import (
    ThroughputTranscodersConfig,
    plain_loss,
    throughput_transcoders,
)
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaConfig, save_model
from itl_train.transcoder import Features
from itl_train.transcoder_config import TranscoderSettings


@pytest.mark.usefixtures("one_thread")
def test_every_part_is_measured_against_what_bounds_it(tmp_path):
    said: list[str] = []
    found = throughput_transcoders(
        ThroughputTranscodersConfig(out=tmp_path / "out", preset="smoke"), said.append
    )
    assert len(found["comparisons"]) == 5
    assert all(row["ratio"] > 0 for row in found["comparisons"])
    assert [row["equal"] for row in found["comparisons"]] == [None, None, True, None, None]
    kept = json.loads((tmp_path / "out/throughput-transcoders.json").read_text())
    assert kept["comparisons"] == found["comparisons"]
    assert "generation, one MLP replaced" in said[0]


@pytest.mark.usefixtures("one_thread")
def test_a_model_of_another_width_and_vocabulary_is_measured_as_it_is(tmp_path):
    sizes = NanoLlamaConfig(d_model=24, n_layers=4, n_heads=2)
    save_model(NanoLlama(sizes, seed=0), tmp_path / "model")
    ByteTokenizer().save(tmp_path / "model")
    said: list[str] = []
    config = ThroughputTranscodersConfig(model=str(tmp_path / "model"), out=tmp_path / "out")
    found = throughput_transcoders(config, said.append)
    assert (found["d_model"], len(found["comparisons"])) == (24, 5)
    assert "Transcoders have a\nwidth of 24" in said[0]


def test_both_ways_of_a_step_have_the_same_gradients():
    settings = TranscoderSettings(d_sae=12, sparsity=0.5, threshold=0.3, bandwidth=0.4)
    torch.manual_seed(0)
    x, target = torch.randn(20, 6), torch.randn(20, 6)
    one, other = (Features(6, settings, torch.zeros(6)) for _ in range(2))
    one.descend(x, target, 0.5)
    plain_loss(other, x, target, settings).backward()
    for a, b in zip(one.trained(), other.trained(), strict=True):
        assert a.grad.abs().sum() > 0
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
