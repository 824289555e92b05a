"""Shows and judges reconstructions of a trained first stage, and measures its latents."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, UInt8

from diffusion_jax import parallel
from diffusion_jax.data import to_uint8
from diffusion_jax.errors import RunError
from diffusion_jax.files import read_json, replace_file
from diffusion_jax.likelihood import METRICS
from diffusion_jax.metrics import RECONSTRUCTIONS, ImageSet, evaluate_all
from diffusion_jax.systems import CODEC, save_first_stage
from diffusion_jax.systems.first_stage import ABOUT
from experiments.building.first_stage import FirstStageExperiment
from experiments.evaluating import judging
from experiments.evaluating.pictures import save_neighbours

SHOWN = 40  # pairs in final.png
Pictures = UInt8[np.ndarray, "n height width channels"]


def reconstructed(experiment: FirstStageExperiment, params: Any, images: Pictures) -> Pictures:
    """The reconstructions of pictures, from the means of their latents. Every process must call this."""
    codec = experiment.codec

    def there_and_back(params: Any, x: jax.Array) -> jax.Array:
        return codec.decode(params, codec.encode(params, x))

    return to_uint8(_over(experiment, there_and_back, params, images))


def measured(experiment: FirstStageExperiment, params: Any, images: Pictures) -> dict[str, list[float]]:
    """Mean and standard deviation of the latents of pictures, for each channel, with shift 0 and scale 1.

    They are those of random draws: the variance is the variance of the means plus the mean of the variances. "noise" is
      the
    square root of the latter's share: 0 if the encoder is certain, 1 if a channel carries no information.
    """
    codec = experiment.codec

    def moments(params: Any, x: jax.Array) -> jax.Array:
        mean, std = codec.posterior(params, x)
        return jnp.stack([v.mean((1, 2)) for v in (mean, jnp.square(mean) + jnp.square(std), jnp.square(std))], axis=1)

    first, second, noise = _over(experiment, moments, params, images).astype(np.float64).mean(0)
    variance = np.maximum(second - first**2, 0.0)
    share = np.sqrt(noise / np.maximum(variance, 1e-30))
    return {"mean": first.tolist(), "std": np.sqrt(variance).tolist(), "noise": share.tolist()}


def covariance(experiment: FirstStageExperiment, params: Any, images: Pictures) -> Float[np.ndarray, "latent latent"]:
    """The covariance between the channels of the latents of pictures, for random draws as in `measured`."""
    codec = experiment.codec

    def moments(params: Any, x: jax.Array) -> jax.Array:
        mean, std = codec.posterior(params, x)
        products = jnp.einsum("nijc,nijd->ncd", mean, mean) / math.prod(mean.shape[1:3])
        noise = jax.vmap(jnp.diag)(jnp.square(std).mean((1, 2)))
        return jnp.concatenate([mean.mean((1, 2))[:, None], products + noise], axis=1)

    first, second = np.split(_over(experiment, moments, params, images).astype(np.float64).mean(0), [1])
    return second - first.T @ first


def _over(
    experiment: FirstStageExperiment, function: Callable[[Any, jax.Array], jax.Array], params: Any, images: Pictures
) -> Float[np.ndarray, "n ..."]:
    """`function(codec's parameters, pictures in [-1, 1])` over batches, whose size does not change the results."""
    layout = experiment.layout
    size = -(-min(experiment.config.sampling.batch_size, len(images)) // layout.num_batch_shards)
    size *= layout.num_batch_shards

    def of_batch(params: Any, x: jax.Array) -> jax.Array:
        return function(params, x.astype(jnp.float32) / 127.5 - 1.0)

    run = jax.jit(layout.placed(of_batch), out_shardings=layout.batch_sharding)
    host = slice(layout.host_index * size // layout.host_count, (layout.host_index + 1) * size // layout.host_count)
    found = []
    for first in range(0, len(images), size):
        rows = np.arange(first, first + size) % len(images)
        result = run(params[CODEC], layout.global_batch({"x": images[rows[host]]})["x"])
        if jax.process_count() > 1:
            result = multihost_utils.process_allgather(result, tiled=True)
        found.append(np.asarray(result)[: len(images) - first])
    result = np.concatenate(found)
    if not np.isfinite(result).all():
        raise RunError("reconstructions or latents are not finite: look at the loss, or another average of the params")
    return result


def draw_pairs(experiment: FirstStageExperiment, params: Any, count: int, path: Path) -> Pictures:
    """Write held-out pictures, each above its reconstruction; returns the reconstructions."""
    images, _ = experiment.pipeline.arrays(experiment.config.data.validation_split, max_examples=count)
    made = reconstructed(experiment, params, images)
    if parallel.is_primary():
        save_neighbours(images, made, path)
    return made


def publish(experiment: FirstStageExperiment, params: Any, directory: Path, source: dict[str, Any]) -> None:
    """Measure the latents of training pictures and write the first stage into the workdir, for latent models.

    Nothing is done if it was written before for the same step and average. Every process must call this.

    Raises:
      UserError: a channel of the latents is constant.
    """
    about = directory / ABOUT
    there = about.is_file() and all(read_json(about).get(name) == value for name, value in source.items())
    if not parallel.any_process(parallel.is_primary() and not there):
        return
    images, _ = experiment.pipeline.arrays(max_examples=experiment.config.evaluation.max_real)
    found = measured(experiment, params, images)
    codec = experiment.codec
    more = {"covariance": covariance(experiment, params, images)} if codec.whiten else {}
    if parallel.is_primary():
        save_first_stage(
            directory,
            codec,
            experiment.config.codec.to_dict(),
            codec.standardised(params[CODEC], np.array(found["mean"]), np.array(found["std"]), **more),
            experiment.info,
            **source,
            measured=found,
            num_measured=len(images),
        )


def evaluate(
    experiment: FirstStageExperiment,
    params: Any,
    directory: Path,
    names: tuple[str, ...],
    num_samples: int,
    source: dict[str, Any],
    missing: dict[str, str],
    out: Path | None,
) -> dict[str, dict[str, float]]:
    """Judge the reconstructions of held-out pictures; writes final.png unless `out` is given.

    Args:
      experiment, params, directory: experiment, parameters and workdir of the run.
      names: metrics that are available.
      num_samples: most held-out pictures.
      source: origin of the parameters.
      missing: metrics that are not available, with the reasons.
      out: file for the numbers; by default evaluation.json.
    """
    config = experiment.config
    test = judging.labelled(experiment.pipeline, config.data.validation_split, num_samples)
    images, labels = test.images, test.labels
    made = reconstructed(experiment, params, images)
    latents = measured(experiment, params, images)
    if not parallel.is_primary():
        return {}
    if out is None:
        save_neighbours(images[:SHOWN], made[:SHOWN], directory / "samples" / "final.png")
    train = judging.labelled(experiment.pipeline, config.data.split, config.evaluation.max_real)
    metrics = judging.build_metrics(experiment, names, train)
    results = evaluate_all(metrics, ImageSet(images=made, labels=labels), train=train, test=test)
    numbers = {f"{name}_{channel}": value for name, values in latents.items() for channel, value in enumerate(values)}
    results = {**{name: results[name] for name in names}, "latents": numbers}
    settings = {
        "num_samples": len(images),
        "of": "reconstructions of held-out pictures",
        "devices": jax.device_count(),
        **({"unavailable": missing} if missing else {}),
        **judging.settings_of(metrics, test),
        **source,
    }
    path = out or directory / "evaluation.json"
    replace_file(path, (json.dumps({**results, "settings": settings}, indent=2) + "\n").encode())
    return results


def is_of_pairs(name: str) -> bool:
    """Whether a metric compares reconstructions with their originals."""
    return RECONSTRUCTIONS in METRICS.facts(name).reads
