"""1-rectified flow on CIFAR-10, unconditional.

Liu et al. 2022, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"
(arXiv:2209.03003): score SDE's DDPM++ (61,804,419 parameters), straight paths, uniform times, Adam 2e-4 after 5000
steps of warm-up, clipping at 1, batch 128, dropout 0.15, EMA 0.999999. We chose the 600k steps, since we do not know
the paper's number.

Published (Table 1): FID 2.58 with RK45 (127 evaluations on average), 378 with one Euler step. Not run here. For a
second rectification, give `--config.objective.name=reflow` and `teacher.workdir`.

Topology: TPU v5e 2x2 (4 chips); the train step needs 3.0 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/rectified_flow_cifar10.py --workdir=runs/rectified_flow
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {"metric": "fid", "num_samples": 50_000, "reference": "CIFAR-10, training images", "source": "Table 1"}
CLAIMS = {
    "paper": "Liu et al. 2022, arXiv:2209.03003",
    "parameters": {
        "value": 61_804_419,
        "source": "score SDE's DDPM++, counted on the authors' code; the paper has 61.8M",
    },
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 0.75,
            "value": 3.0,
            "source": "x_t = (1 - t) x0 + t noise",
            "tolerance": 1e-12,
        }
    ],
    "loss": [{"t": 0.5, "value": 4.0, "source": "velocity: (1 / t)^2"}],
    "sampler": {"nfe": 50, "variance": 0.4853967**2, "source": "recursion of the variances, 50 steps of Euler"},
    "weights": "score_sde",
    "results": [
        {**_JUDGED, "value": 2.58, "sampler": "rk45", "nfe": 127},
        {**_JUDGED, "value": 378.0, "sampler": "flow_euler", "nfe": 1},
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(
        dict(
            name="ddpmpp", channel_multipliers=(1, 2, 2, 2), num_res_blocks=4, attention_resolutions=(16,), dropout=0.15
        )
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="scaled_t", scale=999.0),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform", t_min=1e-3))
    config.objective = ConfigDict(dict(name="flow_matching"))

    config.train.steps = 600_000
    config.train.batch_size = 128
    config.optimizer.update(name="adam", learning_rate=2e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.optimizer.warmup_steps = 5_000
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.999999,)

    config.sampling.sampler = ConfigDict(dict(name="flow_euler"))
    config.sampling.steps = 50
    return config
