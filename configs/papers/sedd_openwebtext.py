"""SEDD on OpenWebText: ratios of probabilities instead of means, with masks.

Lou et al. 2024, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution" (arXiv:2310.16834):
DDiT small (12 blocks of 768 channels) with sigma as an input, 1024 of GPT-2's tokens, score entropy with masks and the
log-linear schedule, AdamW 3e-4 without weight decay after 2,500 steps of warm-up, batch 512, clipping at 1, dropout
0.1, EMA 0.9999, bfloat16, 1.3 million steps.

Published: a perplexity of at most 24.10 on held-out OpenWebText, as trained by the authors of MDLM. Not run here.

Topology: TPU v5e 8x8 (64 chips); the train step needs 5.7 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=text --corpus=openwebtext --text=openwebtext.jsonl.gz \\
        --held_out=100000 --tokenizer=gpt2/tokenizer.json --begin='<|endoftext|>' --end='<|endoftext|>'
    python -m experiments.train --config=configs/papers/sedd_openwebtext.py --workdir=runs/sedd_openwebtext
"""

from ml_collections import ConfigDict

from configs.papers import mdlm_openwebtext

CLAIMS = {
    "paper": "Lou et al. 2024, arXiv:2310.16834",
    "parameters": {"value": 169_627_218, "source": "MDLM's network is SEDD's"},
    "sampler": {"nfe": 1000, "source": "MDLM's script for SEDD on OpenWebText"},
    "weights": "mdlm",
    "results": [
        {
            "metric": "perplexity",
            "value": 24.10,
            "sampler": "sedd_analytic",
            "nfe": 1000,
            "num_samples": 16,
            "reference": "OpenWebText, last 100,000 documents",
            "source": "Sahoo et al. 2024, Table 2",
            "checked": False,
        }
    ],
}

SMOKE = {
    "model": {"hidden_size": 64, "depth": 2, "num_heads": 2, "conditioning_size": 32},
    "times_the_steps": 2,  # a bound on tokens learns slowly
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe of MDLM, which took it from SEDD, with another loss and more steps."""
    config = mdlm_openwebtext.get_config()
    config.process.update(noise="mask", told="sigma")
    config.objective = ConfigDict(dict(name="sedd"))
    config.train.steps = 1_300_000
    config.sampling.sampler = ConfigDict(dict(name="sedd_analytic"))
    return config
