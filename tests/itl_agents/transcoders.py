"""Random transcoders."""

import torch

from itl_agents.transcoder import About, Transcoder

from .decoders import D_MODEL


def transcoder(d_sae: int = 24, seed: int = 0, d_model: int = D_MODEL, **about) -> Transcoder:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {
        "W_enc": draw(d_model, d_sae),
        "b_enc": draw(d_sae),
        "W_dec": draw(d_sae, d_model),
        "b_dec": torch.zeros(d_model) if about.get("base_hash") else draw(d_model),
        "threshold": draw(d_sae).abs(),
    }
    return Transcoder(weights, About(**{"layer": 1, **about}))
