"""A paper's recipe, reduced so that two CPU cores train it in half a minute: does it run, and does it learn?

The reductions: the data is scikit-learn's real 8x8 digits; the network is of the same kind with a few narrow layers;
the batch is 64; the learning rate is at least 2e-3 after a tenth of the steps for warm-up; curricula end with the
steps, and averaged targets look back no further; samples take at most 16 steps (64 with a corrector) with x0 clipped
(tokens, which have 17 values, one for each level of the digits, take 128); squares replace LPIPS, whose weights are
files. Objective, schedule, prediction, network options, optimizer and sampler are the recipe's. A recipe has learned if
its samples are less than half as far from the real digits as those of the same network before training, by the Fréchet
distance of pixels, and clearly closer to them than the mean of all digits: a network that only draws the mean has
learned little.

A recipe for text gets the topics that come with Python, byte by byte in sequences of 64. It has learned if held-out
text is likelier under the model (its perplexity, an upper bound) than under the frequencies of the bytes, so that it
uses the context. For representation alignment, a fixed random layer on patches of the digits replaces DINOv2.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.errors import RunError
from diffusion_jax.files import replace_file
from diffusion_jax.metrics.distances import frechet_distance, gaussian
from diffusion_jax.metrics.features import PixelFeatures
from experiments.building.restoring import open_checkpoints
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation, judging
from experiments.evaluating.texts import save_texts
from experiments.ground import workdir
from experiments.ground.writers import create_writer
from experiments.papers.scorecard import Paper
from experiments.running.loop import Loop, StopSignal

NUM_SAMPLES = 500
RESULT = "smoke.json"


def reduced(paper: Paper, steps: int) -> ConfigDict:
    """The recipe for the digits, or for the text that comes with Python, with the settings in its `SMOKE`."""
    config, smoke = paper.config, paper.smoke
    small = config.copy_and_resolve_references()
    is_text = config.data.dataset == "text"
    with small.unlocked():
        fields = {name: value for name, value in config.data.items() if name != "options"}
        small.data = ConfigDict({**fields, "dataset": "digits", "image_size": 8, "crop": "none", "flip": False})
        small.data.options = ConfigDict()
        if is_text:
            small.data.update(
                dataset="text", image_size=None, options=ConfigDict(dict(corpus="python_docs", length=64))
            )
        small.data.update(split="train", validation_split="test", num_workers=0)
        kept = set(config.model) & set(smoke.get("keeps", set(config.model) - {"size", "remat"}))
        small.model = ConfigDict({**{name: config.model[name] for name in kept}, **smoke["model"]})
        small.train.update(steps=steps, batch_size=64)
        small.optimizer.update(
            learning_rate=max(config.optimizer.learning_rate, 2e-3), warmup_steps=max(1, steps // 10)
        )
        if config.optimizer.decay_steps:
            small.optimizer.decay_steps = steps // 2
        for field, value in {"total_steps": steps, "doubling": max(1, steps // 4), "warmup": steps // 2}.items():
            if field in small.objective:
                small.objective[field] = value
        if Experiment(config).objective.reads_lpips:
            small.objective.distance = "squared"
        if "decay" in small.objective:  # the average of a target, which may not look back beyond the training
            small.objective.decay = min(small.objective.decay, 1 - 10 / steps)
        small.ema.ramp_up_ratio = 0.05
        small.parallel.update(data=-1, fsdp=1, tensor=1, context=1)
        small.sampling.steps = min(config.sampling.steps, 16)
        if is_text:
            small.process.num_tokens = 256
            small.evaluation.likelihood_images = 100
        elif "num_tokens" in small.process:  # the digits have 17 levels; a shorter chain would not reach pure noise
            small.process.update(num_tokens=17, num_steps=128)
            small.sampling.steps = 128
        small.sampling.batch_size, small.sampling.clip_x0 = 250, not Experiment(config).objective.discrete
        small.log.update(every=10, validate_every=0, sample_every=0, num_samples=50)
        small.checkpoint.update(directory="", every=steps, keep_best=0)
        small.evaluation.metrics = ()
        for group in ("objective", "sampling"):
            small[group].update(smoke.get(group, {}))
    return small


def run(paper: Paper, directory: Path, steps: int) -> dict[str, Any]:
    """Train one recipe in reduced form, in its own workdir; returns its score before and after, and the seconds.

    Raises:
      UserError: the reduced recipe does not fit together.
      RunError: the loss is not finite.
    """
    began = time.perf_counter()
    config = reduced(paper, steps)
    if "align_depth" in config.model:
        with config.unlocked():
            config.data.features = str(write_features(config, directory))
    experiment = Experiment(config, directory=directory)
    experiment.check()
    workdir.claim(directory, experiment.config, experiment.info)
    judge = (_Text if experiment.info.spec.kind == "tokens" else _Digits)(experiment)
    state = experiment.layout.init(experiment.init_state)
    before = judge(state.params)
    stop = StopSignal()
    checkpointer = open_checkpoints(experiment, directory)
    with contextlib.closing(create_writer(directory, primary=True)) as writer:
        writer.resume(0)
        record = {"branch": None, "window": []}
        state = Loop(experiment, directory, writer, checkpointer, record).run(state, 0, stop)
        checkpointer.close()
    stop.disarm()
    if state is None:
        raise RunError(f"stopped in {paper.name}")
    after = judge(state.params)
    judge.show(state.params, directory)
    seconds = time.perf_counter() - began
    learned = bool(after < judge.bar(before))
    return {"measure": judge.measure, "before": before, "after": after, "learned": learned, "seconds": seconds}


def write_features(config: ConfigDict, directory: Path) -> Path:
    """Features in place of DINOv2's: a fixed random layer on each 2x2 patch of the real digits and the ring around
    it."""
    images, _ = Experiment(config).pipeline.arrays()
    padded = np.pad(images[..., 0] / 127.5 - 1.0, ((0, 0), (1, 1), (1, 1)), constant_values=-1.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2))[:, ::2, ::2]
    channels = config.model.align_channels
    layer = np.random.default_rng(0).standard_normal((16, channels)) / 4.0
    features = np.tanh(windows.reshape(len(images), -1, 16) @ layer)
    np.save(directory / "features.npy", features.astype(np.float16))
    return directory / "features.npy"


class _Digits:
    """The distance of samples to the real digits, called with parameters."""

    measure = "distance to the digits"

    def __init__(self, experiment: Experiment):
        self.experiment, self.make = experiment, evaluation.generator(experiment, stand_in=True)
        self.asked = evaluation.asked_for(experiment, NUM_SAMPLES).first(NUM_SAMPLES)
        real, _ = experiment.pipeline.arrays(experiment.config.data.split)
        self.pixels = PixelFeatures()
        self.target = gaussian(self.pixels(real).pooled)

    def __call__(self, params: Any) -> float:
        images = self.make.generate(params, self.asked, NUM_SAMPLES)
        return frechet_distance(*gaussian(self.pixels(images).pooled), *self.target)

    def bar(self, before: float) -> float:
        """The bound for a network that has learned; the mean image is as far away as the sum of the pixels'
        variances."""
        return min(0.5 * before, 0.75 * float(np.trace(self.target[1])))

    def show(self, params: Any, directory: Path) -> None:
        """Write samples.png."""
        images = self.make.generate(params, self.asked, NUM_SAMPLES)[:100]
        evaluation.save_asked(images, self.asked.first(100), self.experiment, directory / "samples.png")


class _Text:
    """The perplexity of held-out text, called with parameters."""

    measure = "perplexity"

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        train, held_out = (experiment.pipeline.arrays(split)[0].ravel() for split in ("train", "test"))
        size = experiment.info.spec.num_values
        often = np.bincount(train, minlength=size) + 1.0
        self.by_frequency = float(np.exp(-np.mean(np.log(often / often.sum())[held_out])))

    def __call__(self, params: Any) -> float:
        return judging.judge_model(self.experiment, params, self.measure, seed=0)[self.measure]

    def bar(self, before: float) -> float:
        """The perplexity of the bytes' own frequencies."""
        return self.by_frequency

    def show(self, params: Any, directory: Path) -> None:
        """Write samples.txt."""
        tokens = evaluation.generator(self.experiment).generate(params, None, 10)
        save_texts(tokens, self.experiment.pipeline.tokenizer, directory / "samples.txt")


def run_all(papers: list[Paper], directory: Path, *, steps: int, jobs: int = 1) -> int:
    """Run every recipe, `jobs` at once, each with its share of the CPUs; smoke.json records the finished ones.

    Raises:
      RunError: some recipes did not learn.
    """
    lengths = {paper.name: steps * paper.smoke.get("times_the_steps", 1) for paper in papers}
    homes = {
        paper.name: directory / "smoke" / f"{paper.name}-{workdir.digest(reduced(paper, lengths[paper.name]))[:8]}"
        for paper in papers
    }
    found: dict[str, Any] = {}

    def report(name: str) -> None:
        found[name] = one = json.loads((homes[name] / RESULT).read_text())
        verdict = "learns" if one["learned"] else "DOES NOT LEARN"
        print(
            f"[{len(found)}/{len(papers)}] {name}: {verdict}; {one['measure']} {one['before']:.1f} -> "
            f"{one['after']:.1f} in {lengths[name]} steps, {one['seconds']:.0f} s: {homes[name]}",
            flush=True,
        )

    waiting = []
    for paper in papers:
        if (homes[paper.name] / RESULT).exists():
            report(paper.name)
        else:
            waiting.append((paper, homes[paper.name], lengths[paper.name]))
    if jobs == 1:
        for task in waiting:
            report(keep(*task))
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, context, initializer=take_share, initargs=(context.Value("i", 0), jobs))
        try:
            for done in as_completed([pool.submit(keep, *task) for task in waiting]):
                report(done.result())
        finally:
            pool.shutdown(cancel_futures=True)
    replace_file(
        directory / "smoke.json", json.dumps({paper.name: found[paper.name] for paper in papers}, indent=1).encode()
    )
    wrong = [name for name, one in found.items() if not one["learned"]]
    if wrong:
        raise RunError(f"these recipes did not learn: {', '.join(wrong)}")
    print(f"all {len(found)} recipes run and learn: {directory / 'smoke.json'}")
    return 0


def keep(paper: Paper, home: Path, steps: int) -> str:
    """`run` in a new workdir, which keeps the result; returns the paper's name."""
    if home.exists():  # left by an interrupted run; half a minute is not worth resuming
        shutil.rmtree(home)
    home.mkdir(parents=True)
    print(f"begun: {paper.name}", flush=True)
    replace_file(home / RESULT, json.dumps(run(paper, home, steps), indent=1).encode())
    jax.clear_caches()
    return paper.name


def take_share(number: Any, jobs: int) -> None:
    """Restrict a process that is one of `jobs`, before JAX starts, to its share of the CPUs."""
    if hasattr(os, "sched_setaffinity"):
        with number.get_lock():
            mine = number.value
            number.value += 1
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[mine % min(jobs, len(cpus)) :: jobs])
